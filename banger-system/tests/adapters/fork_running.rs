//! A fork of a running sandbox under the real QEMU: a guest is captured between two instructions and runs on, and two
//! others continue from there, each with disks of its own.
//!
//! The guest is the counter of `template.rs`. It does not know its disks, so the test writes to them in its place.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use banger_domain::{
    id::{Timestamp, VmId},
    launch_spec::LaunchSpec,
    net::nic::Mac,
    vm::Token,
};
use banger_proto::size::Bytes;
use banger_system::{
    host::storage::{captures::LocalCaptures, disks::FileDisks},
    ports::{
        NoProgress,
        captures::{Captures, HostFacts, Origin},
        disks::{Disks, OverlayBy, Parent},
        supervisor::Supervisor,
        vmm::Vmm,
    },
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{
    layers::{IMAGE, SIZE, io},
    scratch::{has_program, names, require},
    skip,
    suspend::counts,
    template::{Host, has_qemu},
};

const PARENT: VmId = VmId::from_bits(0xf);
const CHILDREN: [VmId; 2] = [VmId::from_bits(0xa), VmId::from_bits(0xb)];
const MOST: Bytes = Bytes::mib(128);

struct Lab {
    host: Host,
    disks: FileDisks,
    captures: LocalCaptures,
}

impl Lab {
    async fn new() -> Self {
        let host = Host::new();
        let paths = &host.scratch.paths;
        let image = paths.image(IMAGE);
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        fs::write(&image, vec![0xa5; SIZE as usize]).unwrap();
        let disks = FileDisks::new(paths.clone());
        disks.create_directory(PARENT).await.unwrap();
        disks.clone_image(PARENT, IMAGE, OverlayBy::Vmm, Bytes(0)).await.unwrap();
        disks.create_work_disk(PARENT, Bytes(SIZE)).await.unwrap();
        let captures = LocalCaptures::new(paths.captures());
        Self { host, disks, captures }
    }

    async fn spec(&self, vm: VmId) -> LaunchSpec {
        LaunchSpec { drives: self.disks.attach(vm, IMAGE).await.unwrap(), ..self.host.spec(vm) }
    }

    /// Runs a command of the control protocol, and returns its answer.
    fn control(&self, vm: VmId, command: &str) -> serde_json::Value {
        let socket = self.host.scratch.paths.socket_dir(vm).join("qmp.sock");
        let mut stream = UnixStream::connect(socket).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next().unwrap().unwrap();
        let mut answer = serde_json::Value::Null;
        for command in [r#"{"execute": "qmp_capabilities"}"#, command] {
            writeln!(stream, "{command}").unwrap();
            answer = loop {
                let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                assert!(line.get("error").is_none(), "{line}");
                if let Some(answer) = line.get("return") {
                    break answer.clone();
                }
            };
        }
        answer
    }

    /// Writes to both disks of a running VM.
    fn write(&self, vm: VmId, pattern: u8) {
        let devices = self.control(vm, r#"{"execute": "query-block"}"#);
        let devices: Vec<&str> =
            devices.as_array().unwrap().iter().filter_map(|device| device["qdev"].as_str()).collect();
        assert_eq!(devices.len(), 2);
        // A VMM that is killed loses what it has not flushed.
        let commands = [format!("write -q -P {pattern} 32M 64k"), "flush".to_owned()];
        for (device, command) in
            devices.iter().flat_map(|device| commands.iter().map(move |command| (device, command)))
        {
            let line = format!("qemu-io -d {device} \"{command}\"");
            let arguments = serde_json::json!({"command-line": line});
            let command = serde_json::json!({"execute": "human-monitor-command", "arguments": arguments});
            assert_eq!(self.control(vm, &command.to_string()), "");
        }
    }

    /// Captures the parent for the children. Returns what its guest has said until then.
    async fn capture(&self) -> Vec<u8> {
        let vmm = &self.host.vmm;
        let facts = vmm.facts(PARENT).await.unwrap();
        let layers = self.disks.prepare_layers(PARENT).await.unwrap();
        vmm.halt(PARENT).await.unwrap();
        let layers = layers.freeze().await.unwrap();
        vmm.switch_layers(PARENT, layers).await.unwrap();
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let receive = self.captures.receive(CHILDREN[0], from, MOST);
        let (received, saved, synced) =
            tokio::join!(receive, vmm.save(PARENT, to), self.disks.sync_layers(PARENT));
        saved.unwrap();
        synced.unwrap();
        let said = self.host.said(PARENT);
        vmm.go_on(PARENT).await.unwrap();

        let fork = async |vm, of, parent| -> HostFacts {
            self.disks.create_directory(vm).await.unwrap();
            self.disks.create_child(vm, of, parent, Arc::new(NoProgress)).await.unwrap();
            self.disks.identity(vm).await.unwrap()
        };
        let origin = Origin { token: Token::random(), mac: Mac::of_guest(PARENT) };
        let first = fork(CHILDREN[0], PARENT, Parent::Up).await;
        let first = facts.into_iter().chain(first).collect();
        let stored = received.unwrap().finish(&first, Timestamp(1), Some(origin.clone())).await.unwrap();
        // One that was never started is as good a parent as the one that ran, as often as wanted.
        let second = fork(CHILDREN[1], CHILDREN[0], Parent::Down).await;
        assert_eq!(self.captures.share(CHILDREN[0], CHILDREN[1], &second).await.unwrap(), stored);
        for child in CHILDREN {
            assert_eq!(self.captures.origin(child).await.unwrap(), Some(origin.clone()));
            assert_eq!(self.captures.stored(child).await.unwrap(), Some(stored));
        }
        said
    }

    async fn start_child(&self, vm: VmId) {
        let (host, vmm) = (&self.host, &self.host.vmm);
        let spec = self.spec(vm).await;
        host.run(&spec, vmm.prepare_resume(&spec)).await;
        let mut facts = vmm.facts(vm).await.unwrap();
        facts.extend(self.disks.identity(vm).await.unwrap());
        self.captures.check(vm, &facts).await.unwrap();
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (sent, loaded) = tokio::join!(self.captures.send(vm, to), vmm.load(vm, from));
        sent.unwrap();
        loaded.unwrap();
        vmm.go_on(vm).await.unwrap();
        self.captures.remove(vm).await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_runs_on_and_two_others_continue_from_there_with_disks_of_their_own() {
    require!(has_qemu() && has_program("qemu-io"), "root and QEMU");
    let lab = Lab::new().await;
    let host = &lab.host;
    if !host.scratch.paths.system_layer(PARENT).exists() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let spec = lab.spec(PARENT).await;
    host.run(&spec, host.vmm.prepare_launch(&spec)).await;
    host.until_said(PARENT, 3).await;
    // A VM can be captured again: then it writes to a layer that was added while it ran.
    for round in 1..=2u8 {
        lab.write(PARENT, round);
        let before = lab.capture().await;
        lab.write(PARENT, 7);
        let after = host.until_said(PARENT, before.len() + 3).await;
        assert!(counts(&after), "{after:?}");
        for (child, pattern) in CHILDREN.into_iter().zip(8u8..) {
            lab.start_child(child).await;
            let said = host.until_said(child, 3).await;
            let last = before.last().copied().unwrap();
            assert!(counts(&[&[last], &said[..]].concat()), "{last} {said:?}");
            lab.write(child, pattern);
        }
        for (child, pattern) in CHILDREN.into_iter().zip(8u8..) {
            host.remove(child).await;
            let both_have = async |pattern| {
                for disk in [0, 1] {
                    io(&lab.disks, child, disk, &[&format!("read -P {pattern} 32M 64k")]).await;
                }
            };
            both_have(pattern).await;
            lab.disks.empty(child).await.unwrap();
            both_have(round).await;
            lab.disks.remove_directory(child).await.unwrap();
        }
    }
    host.supervisor.remove(PARENT).await.unwrap();
    for disk in [0, 1] {
        io(&lab.disks, PARENT, disk, &["read -P 7 32M 64k"]).await;
    }
    host.remove(PARENT).await;
    assert_eq!(lab.captures.found().await.unwrap(), []);
    assert!(names(&host.scratch.paths.sockets()).is_empty());
}
