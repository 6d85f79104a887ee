//! Small inputs of every kind, from which libFuzzer makes others.

use banger_image::{
    fixtures::{
        kernel::{self as fixture, RELEASE},
        layout::{self, Layout, config_on, configuration},
        tar::Tar,
    },
    kernel::decompress::Compression,
};
use banger_proto::guest::{
    BootConfig, Exec, Frame, GuestConfig, Rejuvenation,
    config::{Entropy, Init, Programs},
    hello::{HostHello, Verdict, answer},
    listing::{Entry, Kind},
    message::{Attach, Exit, Failure, FailureKind, Phase, Request, Started, Terminal, WindowSize},
};
use serde_json::json;

use crate::Archives;

pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "archive" => saved(),
        "catalog" => catalogs(),
        "copy" => copies(),
        "egress" => policies(),
        "frames" => frames(),
        "import" | "rootfs" => archives(),
        "kernel" => kernels(),
        "modules" => modules(),
        "mount" => mount(),
        "oci" => documents(),
        "values" => values(),
        other => panic!("there are no seeds for {other}"),
    }
}

/// Returns texts of every kind of value, after the letter of the kind.
fn values() -> Vec<Vec<u8>> {
    let texts = [
        "b512M",
        "b1.5GiB",
        "b4096",
        "e*.example.com:443",
        "e10.0.0.0/8",
        "e[2001:db8::1]:53/udp",
        "epackages",
        "hexample.com",
        "p*.example.com",
        "nweb-1",
        "ralice/web",
        "r0123abcd",
        "o127.0.0.1:8080:80/tcp",
        "o8080:80",
        "s10.77.0.0/16",
        "tEurope/Berlin",
        "flinux/arm64/v8",
        "y6.12.9-amd64",
        "w192.0.2.0/24",
        "lhttps://example.com/catalog",
        "i0123456789abcdef0123456789abcdef",
        "ussh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ alice",
        "dsha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Returns a policy, a ceiling, and names and addresses, with a byte of 1 between them.
fn policies() -> Vec<Vec<u8>> {
    let all = [
        "example.com\n*.example.org:443\x01*.com\n10.0.0.0/8\x01example.com a.example.org 192.0.2.7",
        "all\x01example.com:443/tcp\x01example.com",
        "192.0.2.0/24:80\n2001:db8::/32\x01all\x01192.0.2.7 2001:db8::1",
        "10.0.0.0/8\x0110.1.0.0/16:53/udp\x0110.1.2.3",
    ];
    all.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Returns archives of copies, as those of images are encoded.
fn copies() -> Vec<Vec<u8>> {
    let hostile = Tar::default()
        .dir("directory/")
        .file("directory/file", b"content")
        .link(b'2', "link", "../outside")
        .file("outward", b"written")
        .file("up/new", b"new")
        .link(b'1', "twin", "../outside")
        .file(".git/config", b"[core]")
        .end();
    let mut inputs = vec![Archives::input(0, std::slice::from_ref(&hostile))];
    for flags in [16, 32, 48] {
        let mut input = Archives::input(0, std::slice::from_ref(&hostile));
        input[0] |= flags;
        inputs.push(input);
    }
    inputs
}

/// Returns requests of a guest's kernel: an opcode, a number of a file, the length of what follows, and that.
fn mount() -> Vec<Vec<u8>> {
    let request = |opcode: u8, node: u8, body: &[u8]| [&[opcode, node, body.len() as u8], body].concat();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let named = |fields: &[u32], names: &[u8]| [words(fields), names.to_vec()].concat();
    // Numbers are given in order, from 2.
    let lookup = request(1, 1, b"file\0");
    let all: Vec<Vec<u8>> = vec![
        request(14, 2, &words(&[2, 0])),
        request(16, 2, &named(&[3, 0, 1, 0, 3, 0, 0, 0, 0, 0], b"abc")),
        request(15, 2, &words(&[3, 0, 0, 0, 100, 0, 0, 0, 0, 0])),
        request(4, 2, &[words(&[8 | 1, 0, 0, 0, 7]), vec![0; 68]].concat()),
        request(35, 1, &named(&[2, 0o644, 0, 0], b"new\0")),
        request(9, 1, &named(&[0o755, 0], b"sub\0")),
        request(6, 1, b"link\0../outside\0"),
        request(12, 1, &named(&[1, 0], b"file\0moved\0")),
        request(45, 1, &named(&[1, 0, 2, 0], b"file\0directory\0")),
        request(13, 1, &named(&[2, 0], b"twin\0")),
        request(27, 1, &words(&[0, 0])),
        request(44, 1, &words(&[3, 0, 0, 0, 0, 1, 0, 0, 0, 0])),
        request(10, 1, b"link\0"),
        request(11, 1, b"directory\0"),
        request(1, 1, b"..\0"),
        request(1, 1, b"outward\0"),
        request(5, 3, b""),
        request(2, 2, &[1, 0, 0, 0, 0, 0, 0, 0]),
        request(42, 0, &words(&[1, 0, 2, 0, 1, 0])),
        request(17, 1, b""),
    ];
    let each = all.iter().map(|request| [lookup.clone(), request.clone()].concat());
    each.chain([[lookup.clone(), all.concat()].concat()]).collect()
}

/// Returns a layout and a Docker archive.
fn saved() -> Vec<Vec<u8>> {
    let layers = [Tar::default().file("lower", b"1").end()];
    let list = json!([{ "Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"] }]);
    let docker = Layout::default()
        .with("c.json", configuration(&layers, &config_on("linux/amd64")).to_string())
        .with("l.tar", layers[0].clone())
        .with("manifest.json", list.to_string());
    vec![
        Archives::input(0, &[layout::of(&layers, "1").tar()]),
        Archives::input(0, &[docker.tar()]),
        Archives::input(0, &[docker.tar(), layout::of(&layers, "2").tar()]),
    ]
}

fn archives() -> Vec<Vec<u8>> {
    let lower = Tar::default()
        .dir("./")
        .dir("d/")
        .file("d/old", b"old")
        .file("d/kept", &[7; 5000])
        .link(b'2', "s", "d")
        .link(b'1', "s/twin", "d/kept")
        .entry("fifo", b'6', b"")
        .entry("null", b'3', b"")
        .end();
    let upper =
        Tar::default().file("d/.wh.old", b"").file("d/.wh..wh..opq", b"").file("s/new", &[1; 9000]).end();
    let pax = Tar::default()
        .pax(&[
            ("path", "ž".as_bytes()),
            ("mtime", b"-1.999999999"),
            ("uid", b"70000"),
            ("SCHILY.xattr.user.a", b"value"),
            ("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 32, 0, 0]),
        ])
        .file("x", b"content")
        .pax(&[("linkpath", "t".repeat(100).as_bytes())])
        .link(b'2', "long", "")
        .end();
    let sparse = Tar::default()
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"100000")])
        .file("s", &[b"2\n0\n3\n90000\n4\n".as_slice(), &[0; 498], b"abcdefg"].concat())
        .pax(&[("GNU.sparse.map", b"0,4,8192,2"), ("GNU.sparse.size", b"9000")])
        .file("t", b"123456")
        .end();
    let gnu = Tar::default()
        .entry("././@LongLink", b'L', "n".repeat(200).as_bytes())
        .file("n", b"1")
        .entry("././@LongLink", b'K', "l".repeat(200).as_bytes())
        .link(b'2', "m", "l")
        .end();
    let many = (0..40).fold(Tar::default(), |tar, n| tar.file(&format!("d{}/f{n}", n % 3), b"")).end();
    vec![
        Archives::input(0, std::slice::from_ref(&lower)),
        Archives::input(2, &[lower.clone(), upper.clone()]),
        Archives::input(3, &[lower, pax.clone(), upper]),
        Archives::input(0, &[pax]),
        Archives::input(0, &[sparse]),
        Archives::input(0, &[gnu]),
        Archives::input(0, &[many]),
    ]
}

fn kernels() -> Vec<Vec<u8>> {
    let vmlinux = fixture::vmlinux();
    let packed = [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4]
        .map(|compression| fixture::bzimage(&fixture::payload(compression, &vmlinux)));
    let arm64 = [Compression::Gzip, Compression::Zstd]
        .map(|compression| fixture::zboot(0xaa64, &fixture::payload(compression, &fixture::arm64_image())));
    let plain = [fixture::bzimage(&vmlinux), vmlinux.clone(), fixture::arm64_image()];
    packed.into_iter().chain(arm64).chain(plain).collect()
}

/// Returns trees of modules. All needed modules but a few are in `modules.builtin`.
fn modules() -> Vec<Vec<u8>> {
    let place = |path: &str| format!("lib/modules/{RELEASE}/{path}");
    let builtin = [
        "virtio",
        "virtio_ring",
        "virtio_mmio",
        "virtio_pci",
        "virtio_blk",
        "virtio_net",
        "ext4",
        "jbd2",
        "mbcache",
        "crc16",
        "crc32c_generic",
        "libcrc32c",
        "overlay",
        "vsock",
        "af_packet",
        "unix",
    ];
    let builtin: String = builtin.iter().map(|name| format!("kernel/x/{name}.ko\n")).collect();
    let packed = |compression, needs| fixture::pack(compression, &fixture::module_needing(needs));
    let tree = |modules: Vec<(String, Vec<u8>)>| {
        let mut files = vec![(place("modules.builtin"), builtin.clone().into_bytes())];
        files.extend(modules);
        let files: Vec<(&str, Vec<u8>)> =
            files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect();
        fixture::tar(&files).into_inner()
    };
    vec![
        tree(vec![(place("kernel/virtio_console.ko"), fixture::module_needing("virtio"))]),
        tree(vec![
            (place("kernel/virtio_console.ko.xz"), packed(Compression::Xz, "virtio,other")),
            (place("kernel/other.ko.zst"), packed(Compression::Zstd, "")),
            (place("kernel/vmw_vsock_virtio_transport.ko.gz"), packed(Compression::Gzip, "vsock")),
        ]),
    ]
}

fn documents() -> Vec<Vec<u8>> {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let layer = |digit| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(digit), "size": 7 });
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [digest("1"), digest("2")] },
        "config": {
            "Env": ["PATH=/bin", "A="], "User": "1000:1000", "WorkingDir": "/srv", "Entrypoint": ["/init"],
            "Cmd": ["sh"], "StopSignal": "SIGTERM", "ExposedPorts": { "80/tcp": {} }, "Labels": { "a": "b" },
        },
    });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest("0"),
            "size": config.to_string().len(),
        },
        "layers": [layer("a"), layer("b")],
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest("c"), "size": 500,
            "platform": { "architecture": "amd64", "os": "linux", "variant": "v2" },
        }],
    });
    let (manifest, config) = (manifest.to_string(), config.to_string());
    let length = u16::try_from(manifest.len()).unwrap().to_be_bytes();
    let mut seeds = vec![
        [b"m".as_slice(), index.to_string().as_bytes()].concat(),
        [b"i".as_slice(), index.to_string().as_bytes()].concat(),
        [b"m".as_slice(), manifest.as_bytes()].concat(),
        [b"c".as_slice(), &length, manifest.as_bytes(), config.as_bytes()].concat(),
        br#"p{"username":"alice","password":"secret"}"#.to_vec(),
        br#"p{"identity-token":"token"}"#.to_vec(),
    ];
    for reference in ["alpine", "ghcr.io/org/tool:1.2", "localhost:5000/a/b@", "[::1]:5000/x:y@"] {
        let digest = if reference.ends_with('@') { digest("0") } else { String::new() };
        seeds.push(format!("r{reference}{digest}").into_bytes());
    }
    seeds
}

fn catalogs() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let file = |name| json!({ "location": name, "digest": digest, "size": 5 });
    let index = json!({
        "schema": 1, "serial": 7, "expires": "2027-01-31",
        "images": [
            { "name": "debian", "description": "Debian", "version": "12", "kernel": "generic", "note": "",
              "targets": { "x86_64": { "archive": file("files/a.tar.zst") } } },
            { "name": "tool", "targets": { "x86_64": { "reference": format!("example.org/a/tool:1@{digest}") } } },
        ],
        "kernels": [
            { "name": "generic", "version": "6.12.1",
              "targets": { "x86_64": { "kernel": file("https://example.org/k"), "modules": file("m.tar") } } },
        ],
    });
    let mut seeds = vec![format!("i{index}").into_bytes()];
    for location in ["https://example.org/catalog/index.json", "/usr/share/banger/index.json", "file:///a/b"]
    {
        seeds.push(format!("l{location}\nfiles/a.tar.zst").into_bytes());
    }
    seeds
}

fn boot_config() -> BootConfig {
    let guest = GuestConfig {
        token: "0123456789abcdef0123456789abcdef".into(),
        hostname: "box".into(),
        names: vec!["box.vm".into()],
        root_device: "/dev/vda".into(),
        work_disk: None,
        module_disk: None,
        init: Init::Auto,
        unix_usec: 1,
        network: None,
        ssh: None,
        timezone: None,
        programs: Programs::default(),
        files: Vec::new(),
    };
    BootConfig { guest, entropy: Entropy([[1; 32]; 2]) }
}

fn frames() -> Vec<Vec<u8>> {
    let all = [
        Frame::Request(Request::Shutdown),
        Frame::Input(vec![0, 1, 2]),
        Frame::InputEnd,
        Frame::Resize(WindowSize { rows: 1, columns: 2 }),
        Frame::Signal(15),
        Frame::Configure(Box::new(boot_config())),
        Frame::Rejuvenate(Box::new(Rejuvenation {
            entropy: Entropy([[1; 32]; 2]),
            unix_usec: 7,
            token: "0123456789abcdef0123456789abcdef".into(),
            identity: None,
        })),
        Frame::Request(Request::Attach(Attach { session: "work".into(), size: None })),
        Frame::Started(Started::new(12)),
        Frame::Output(b"out".to_vec()),
        Frame::ErrorOutput(Vec::new()),
        Frame::Window(1 << 20),
        Frame::Exit(Exit::Code(42)),
        Frame::Exit(Exit::Signal(9)),
        Frame::Done,
        Frame::Failed(Failure { kind: FailureKind::NotFound, message: "no such program".into() }),
    ];
    let token = "0123456789abcdef0123456789abcdef";
    let hello = HostHello::new([7; 16], token).unwrap();
    let mut listing = Vec::new();
    for (kind, name) in
        [(Kind::File, "a b"), (Kind::Directory, "d"), (Kind::Symlink, "d/s"), (Kind::Other, "x")]
    {
        Entry { kind, mode: 0o4755, size: 5 << 30, name: name.into() }.write(&mut listing);
    }
    let exec = Exec {
        of_image: true,
        argv: vec!["sh".into(), "-c".into(), "true".into()],
        env: vec![("A".into(), "b".into())],
        unset: vec!["B".into()],
        path: vec!["/run/a/bin".into()],
        cwd: Some("/tmp".into()),
        user: Some("root".into()),
        terminal: Some(Terminal { term: "xterm".into(), size: WindowSize { rows: 24, columns: 80 } }),
        detach: false,
        power_off: false,
        locale: vec![("LANG".into(), "C.UTF-8".into())],
        wait: Phase::Boot,
        session: Some("work".into()),
    };
    vec![
        [b"f\x03".to_vec(), all.iter().flat_map(Frame::encode).collect()].concat(),
        [b"f\x07".to_vec(), Frame::Request(Request::Exec(exec)).encode()].concat(),
        [b"h\x05".as_slice(), &hello.encode()].concat(),
        [b"h\x05".as_slice(), &answer(&hello, Verdict::Welcome)].concat(),
        [b"l\x05".to_vec(), listing].concat(),
    ]
}
