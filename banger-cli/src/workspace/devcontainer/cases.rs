//! Forms of devcontainer.json that the specification and its issue tracker show: what the reference implementation
//! (the `devcontainer` command) makes of each, and what banger makes of it.
#![allow(clippy::unwrap_used)]

use super::*;

/// A form, the reading of the reference implementation, and ours.
type Case = (&'static str, &'static str, &'static str);

const SYNTAX: &[Case] = &[
    ("{}", "refused: no image", ""),
    ("\u{feff}{\"image\": \"a\"}", "the specification says nothing", "image=a"),
    ("{\n// c\n\"image\": /* c */ \"a\", // c\n}", "read", "image=a"),
    (
        "{\"image\": \"a\" \"name\": \"n\"}",
        "read as if the comma were there",
        "ERROR it is not valid JSON at line 1, column 15",
    ),
    ("", "refused", "ERROR it is not valid JSON at line 1, column 0"),
    ("[]", "refused: not an object", "ERROR it is not an object"),
    ("{\"image\": \"a\", \"image\": \"b\"}", "the last one", "image=b"),
    (
        r#"{"name": "n", "$schema": "s", "customizations": {"vscode": {"extensions": ["e"]}}}"#,
        "for editors",
        "",
    ),
    (r#"{"extensions": ["e"], "settings": {}, "devPort": 1}"#, "moved to customizations.vscode", ""),
    (r#"{"secrets": {"TOKEN": {"description": "d"}}}"#, "recommended to the user", "ignored secrets"),
    (r#"{"remoteuser": "dev"}"#, "ignored", "ignored remoteuser"),
];

const IMAGES: &[Case] = &[
    (r#"{"image": "example.org/dev:1-bookworm"}"#, "the image", "image=example.org/dev:1-bookworm"),
    (r#"{"image": null}"#, "refused", ""),
    (r#"{"image": 5}"#, "fails", "ERROR image is not a string"),
    (r#"{"image": "a:${localEnv:TAG:1}"}"#, "TAG of the user, else 1", "image=a:1"),
    (r#"{"image": "a:${localEnv:PASSED}"}"#, "the variable of the user", "image=a:yes"),
    (
        r#"{"image": "a:${localEnv:TAG}"}"#,
        "TAG of the user, else `a:`",
        "ERROR cannot tell which image it names: `-e TAG` lets it read TAG of your environment",
    ),
    (
        r#"{"image": "a:${templateOption:imageVariant}"}"#,
        "a template that was not applied: docker refuses the name",
        "ERROR cannot tell which image it names: ${templateOption:imageVariant} has no value",
    ),
    (
        r#"{"build": {"dockerfile": "Dockerfile"}}"#,
        "builds .devcontainer/Dockerfile",
        "build=.devcontainer/Dockerfile in .devcontainer",
    ),
    (
        r#"{"build": {"dockerfile": "../Dockerfile", "context": ".."}}"#,
        "builds Dockerfile in the repository",
        "build=Dockerfile in ",
    ),
    (
        r#"{"dockerFile": "Dockerfile", "context": ".."}"#,
        "builds with the repository as context",
        "build=.devcontainer/Dockerfile in ",
    ),
    (
        r#"{"build": {"dockerfile": "Dockerfile", "context": "../../.."}}"#,
        "sends a directory above the repository to the build",
        "build=.devcontainer/Dockerfile in OUTSIDE",
    ),
    (
        r#"{"build": {"dockerfile": "/etc/Dockerfile"}}"#,
        "builds a file of the host",
        "build=OUTSIDE in .devcontainer",
    ),
    (
        r#"{"build": {"dockerfile": "D", "options": ["--network=host"], "cacheFrom": "a"}}"#,
        "passes both to docker build",
        "build=.devcontainer/D in .devcontainer; ignored build.options, build.cacheFrom",
    ),
    (
        r#"{"build": {"dockerfile": "D", "args": {"T": "${localEnv:TOKEN}"}}}"#,
        "passes TOKEN of the user to the build",
        "build=.devcontainer/D in .devcontainer; ignored build.args.T (`-e TOKEN` lets it read TOKEN of your environment)",
    ),
    (r#"{"build": {"target": "dev"}}"#, "refused: no image", ""),
    (
        r#"{"features": {"ghcr.io/devcontainers/features/node:1": {"version": "20"}}}"#,
        "installs it into the image",
        "features=node:1",
    ),
    (r#"{"features": {"./local": {}}}"#, "installs a feature of the repository", "features=./local"),
    (
        r#"{"dockerComposeFile": ["a.yml"], "service": "app", "runServices": ["db"]}"#,
        "starts the services",
        "ignored dockerComposeFile (`docker compose` in the sandbox can start its services)",
    ),
];

const COMMANDS: &[Case] = &[
    (
        r#"{"postCreateCommand": "npm ci && npm test"}"#,
        "for /bin/sh",
        "postCreateCommand=[sh: npm ci && npm test]",
    ),
    (r#"{"postCreateCommand": ["npm", "run x"]}"#, "without a shell", "postCreateCommand=[npm|run x]"),
    (
        r#"{"postStartCommand": {"a": "x", "b": ["y", "z"]}}"#,
        "both at the same time",
        "postStartCommand=[sh: x][y|z]",
    ),
    (r#"{"onCreateCommand": "a"}"#, "first, once", "onCreateCommand=[sh: a]"),
    (r#"{"updateContentCommand": "a"}"#, "after that", "updateContentCommand=[sh: a]"),
    (r#"{"postAttachCommand": "a"}"#, "each time a tool attaches", "postAttachCommand=[sh: a]"),
    (r#"{"postCreateCommand": ""}"#, "nothing", ""),
    (r#"{"postCreateCommand": []}"#, "nothing", ""),
    (r#"{"postCreateCommand": {}}"#, "nothing", ""),
    (r#"{"postCreateCommand": null}"#, "nothing", ""),
    (r#"{"postCreateCommand": 1}"#, "nothing", "ignored postCreateCommand (it is not a command)"),
    (r#"{"postCreateCommand": [1]}"#, "fails", "ignored postCreateCommand (it is not a list of strings)"),
    (
        r#"{"postCreateCommand": {"a": {"b": "c"}, "d": "e"}}"#,
        "fails",
        "postCreateCommand=[sh: e]; ignored postCreateCommand.a (it is not a command)",
    ),
    (
        r#"{"postCreateCommand": "echo ${HOME} ${X:-y} ${containerWorkspaceFolder}"}"#,
        "leaves what the shell knows",
        "postCreateCommand=[sh: echo ${HOME} ${X:-y} /root/repo]",
    ),
    (
        r#"{"postCreateCommand": "echo ${localEnv:TOKEN}"}"#,
        "TOKEN of the user",
        "ignored postCreateCommand (`-e TOKEN` lets it read TOKEN of your environment)",
    ),
    (
        r#"{"initializeCommand": "touch x"}"#,
        "runs on the host",
        "ignored initializeCommand (it would run on the host)",
    ),
    (r#"{"waitFor": "onCreateCommand"}"#, "the tool may go on earlier", ""),
    (r#"{"userEnvProbe": "none"}"#, "runs no shell for its variables", ""),
    (r#"{"userEnvProbe": "loginShell"}"#, "takes variables of a login shell", "ignored userEnvProbe"),
    (r#"{"overrideCommand": true}"#, "the image's command does not run", ""),
    (
        r#"{"overrideCommand": false}"#,
        "the image's command runs",
        "ignored overrideCommand (the image's own command is not run)",
    ),
    (r#"{"shutdownAction": "none"}"#, "keeps running", ""),
    (
        r#"{"shutdownAction": "stopContainer"}"#,
        "stops with the editor",
        "ignored shutdownAction (the sandbox keeps running)",
    ),
];

const VARIABLES: &[Case] = &[
    (r#"{"containerEnv": {"A": "x=y"}}"#, "set", "env A=x=y"),
    (r#"{"containerEnv": {"A": 1}}"#, "1, an error in some versions", "env A=1"),
    (r#"{"containerEnv": {"A": 1.0}}"#, "1", "env A=1"),
    (r#"{"containerEnv": {"A": -2.5}}"#, "-2.5", "env A=-2.5"),
    (r#"{"containerEnv": {"A": true}}"#, "true, an error in some versions", "env A=true"),
    (r#"{"containerEnv": {"A": null}}"#, "the text null", "env A unset"),
    (r#"{"remoteEnv": {"A": null}}"#, "unset", "remote A unset"),
    (
        r#"{"remoteEnv": {"A": ["b"]}}"#,
        "the specification says nothing",
        "ignored remoteEnv.A (it is not a string)",
    ),
    (
        r#"{"containerEnv": {"A=B": "c"}}"#,
        "sets A",
        "ignored containerEnv.A=B (it is not a name for a variable)",
    ),
    (
        r#"{"containerEnv": []}"#,
        "nothing",
        "ignored containerEnv (it has another type than the specification says)",
    ),
    (
        r#"{"remoteEnv": {"PATH": "${containerEnv:PATH}:/x"}}"#,
        "PATH of the container",
        "remote PATH=${containerEnv:PATH}:/x",
    ),
    (r#"{"containerEnv": {"A": "${localEnv:HOME:/h}"}}"#, "HOME of the user, else /h", "env A=/h"),
    (r#"{"containerEnv": {"A": "${env:PASSED}"}}"#, "the variable of the user", "env A=yes"),
    (
        r#"{"containerEnv": {"A": "${localEnv:HOME}"}}"#,
        "HOME of the user, else empty",
        "ignored containerEnv.A (`-e HOME` lets it read HOME of your environment)",
    ),
    (
        r#"{"containerEnv": {"A": "${localEnv}"}}"#,
        "refused",
        "ignored containerEnv.A (${localEnv} names no variable)",
    ),
    (
        r#"{"containerEnv": {"A": "${localWorkspaceFolderBasename} ${localWorkspaceFolder}"}}"#,
        "the path on the host",
        "env A=shop /root/repo",
    ),
    (
        r#"{"containerEnv": {"A": "${containerWorkspaceFolderBasename}"}, "workspaceFolder": "/srv/app"}"#,
        "app",
        "env A=app; folder=/srv/app",
    ),
    (
        r#"{"containerEnv": {"A": "${devcontainerId}"}}"#,
        "a digest of the host's path",
        "env A=${devcontainerId}",
    ),
];

const MOUNTS: &[Case] = &[
    (r#"{"mounts": ["source=v,target=/data,type=volume"]}"#, "a volume", "volume /data"),
    (r#"{"mounts": ["src=v,dst=/data"]}"#, "a volume, which is docker's default", "volume /data"),
    (
        r#"{"mounts": [{"source": "v-${devcontainerId}", "target": "/var/lib/docker", "type": "volume"}]}"#,
        "a volume",
        "volume /var/lib/docker",
    ),
    (
        r#"{"mounts": ["source=v,target=${containerWorkspaceFolder}/node_modules,type=volume"]}"#,
        "a volume over a directory of the workspace",
        "volume /root/repo/node_modules",
    ),
    (r#"{"mounts": ["type=volume,\"target=/a,b\""]}"#, "quoted as in CSV", "volume /a,b"),
    (
        r#"{"mounts": ["type=tmpfs,target=/t,tmpfs-size=1048576,tmpfs-mode=0700"]}"#,
        "in memory",
        "tmpfs /t nosuid,nodev,size=1048576,mode=700",
    ),
    (
        r#"{"mounts": ["source=/var/run/docker.sock,target=/var/run/docker.sock,type=bind"]}"#,
        "a file of the host",
        "ignored mounts source=/var/run/docker.sock,target=/var/run/docker.sock,type=bind (nothing of the host is mounted)",
    ),
    (
        r#"{"mounts": [{"source": "${localEnv:HOME}/.ssh", "target": "/s", "type": "bind"}]}"#,
        "a directory of the host",
        "ignored mounts /s (nothing of the host is mounted)",
    ),
    (r#"{"mounts": ["type=volume"]}"#, "docker refuses it", "ignored mounts type=volume (it has no target)"),
    (
        r#"{"mounts": ["type=volume,target=a"]}"#,
        "docker refuses it",
        "ignored mounts type=volume,target=a (its target is not an absolute path)",
    ),
    (
        r#"{"mounts": ["type=tmpfs,target=/a/../../b"]}"#,
        "docker decides",
        "ignored mounts type=tmpfs,target=/a/../../b (its target is not an absolute path)",
    ),
    (
        r#"{"mounts": ["type=npipe,target=/a"]}"#,
        "docker refuses it",
        "ignored mounts type=npipe,target=/a (a sandbox has no mounts of type npipe)",
    ),
    (r#"{"mounts": [1]}"#, "docker refuses it", "ignored mounts 1 (it is not a mount)"),
];

const USERS: &[Case] = &[
    (r#"{"remoteUser": "dev"}"#, "runs commands", "user=dev; folder=/workspaces/shop"),
    (r#"{"containerUser": "dev"}"#, "runs everything", "user=dev; folder=/workspaces/shop"),
    (r#"{"containerUser": "a", "remoteUser": "b"}"#, "b runs commands", "user=b; folder=/workspaces/shop"),
    (r#"{"containerUser": "a", "remoteUser": "root"}"#, "root runs commands", ""),
    (r#"{"containerUser": "1000:1000"}"#, "a user and a group", "user=1000; folder=/workspaces/shop"),
    (r#"{"remoteUser": ""}"#, "the image's user", ""),
    (
        r#"{"remoteUser": "${localEnv:U:dev}"}"#,
        "U of the user, else dev",
        "user=dev; folder=/workspaces/shop",
    ),
    (
        r#"{"remoteUser": "${localEnv:USER}"}"#,
        "the name of the user",
        "ignored remoteUser (`-e USER` lets it read USER of your environment)",
    ),
    (r#"{"remoteUser": "${x}"}"#, "docker refuses it", "ignored remoteUser (${x} has no value)"),
    (
        r#"{"remoteUser": []}"#,
        "fails",
        "ignored remoteUser (it has another type than the specification says)",
    ),
    (r#"{"updateRemoteUserUID": true, "init": true, "privileged": true}"#, "options of docker run", ""),
    (r#"{"capAdd": ["SYS_PTRACE"], "securityOpt": ["seccomp=unconfined"]}"#, "options of docker run", ""),
    (
        r#"{"runArgs": ["--cap-add=SYS_PTRACE", "--security-opt", "seccomp=unconfined", "--network=host"]}"#,
        "options of docker run",
        "ignored runArgs --network=host",
    ),
    (r#"{"runArgs": ["--cap-add", "SYS_PTRACE", "--init", "--privileged"]}"#, "options of docker run", ""),
];

const PORTS: &[Case] = &[
    (r#"{"forwardPorts": [3000, "8080", "localhost:9000", 3000]}"#, "forwarded", "ports=3000,8080,9000"),
    (
        r#"{"forwardPorts": [3000, "db:5432"]}"#,
        "a port of another container",
        "ports=3000; ignored forwardPorts db:5432 (it is a port of another container)",
    ),
    (
        r#"{"forwardPorts": [70000, "8000-8010", "x", 3000]}"#,
        "editors ignore them",
        "ports=3000; ignored forwardPorts 70000 (it is not a port), forwardPorts 8000-8010 (it is not a port), \
         forwardPorts x (it is not a port)",
    ),
    (
        r#"{"forwardPorts": ["3000:3001"]}"#,
        "not in the schema",
        "ignored forwardPorts 3000:3001 (it is not a port)",
    ),
    (r#"{"forwardPorts": 3000}"#, "taken as a list of one", "ports=3000"),
    (r#"{"appPort": 3000}"#, "published on the loopback", "ports=3000"),
    (r#"{"appPort": [3000, "8000:8010"]}"#, "published", "ports=3000,8000>8010"),
    (r#"{"appPort": "0.0.0.0:8000:80/tcp"}"#, "published on every address", "ports=8000>80"),
    (r#"{"appPort": "53:53/udp"}"#, "published", "ignored appPort 53:53/udp (only TCP is forwarded)"),
    (r#"{"appPort": "8000-8010"}"#, "published", "ignored appPort 8000-8010 (it is not a port)"),
    (
        r#"{"portsAttributes": {"3000": {"label": "a"}}, "otherPortsAttributes": {"onAutoForward": "ignore"}}"#,
        "for editors",
        "",
    ),
];

const SIZES: &[Case] = &[
    (
        r#"{"hostRequirements": {"cpus": 4, "memory": "8gb", "storage": "32gb"}}"#,
        "warns if the host has less",
        "cpus=4; memory=8 GiB; storage=32 GiB",
    ),
    (r#"{"hostRequirements": {"memory": 4294967296}}"#, "bytes", "memory=4 GiB"),
    (r#"{"hostRequirements": {"memory": "4294967296"}}"#, "bytes", "memory=4 GiB"),
    (r#"{"hostRequirements": {"cpus": 1, "memory": "512mb"}}"#, "at least that", ""),
    (
        r#"{"hostRequirements": {"cpus": "many", "memory": "lots"}}"#,
        "0",
        "ignored hostRequirements.cpus (it is not a number of processors), hostRequirements.memory (it is not a size)",
    ),
    (r#"{"hostRequirements": {"gpu": "optional"}}"#, "passed on where there is one", ""),
    (
        r#"{"hostRequirements": {"gpu": true}}"#,
        "passed on, or a warning",
        "ignored hostRequirements.gpu (a sandbox has no GPU)",
    ),
];

/// Returns a file of a repository `shop`, which may read one variable.
pub fn around() -> Around {
    Around {
        file: ".devcontainer/devcontainer.json".to_owned(),
        repository: "shop".to_owned(),
        passed: BTreeMap::from([("PASSED".to_owned(), "yes".to_owned())]),
        ..Around::default()
    }
}

/// Formats what is not the default.
fn shown(container: &Devcontainer) -> String {
    let mut parts = Vec::new();
    let mut put = |part: String| parts.push(part);
    if let Some(image) = &container.image {
        put(format!("image={image}"));
    }
    if let Some(build) = &container.build {
        let path = |path: &Option<String>| path.as_deref().unwrap_or("OUTSIDE").to_owned();
        put(format!("build={} in {}", path(&build.dockerfile), path(&build.context)));
    }
    if !container.features.is_empty() {
        put(format!("features={}", container.features.join(",")));
    }
    let Requirements { cpus, memory, storage } = container.sizes;
    cpus.into_iter().for_each(|cpus| put(format!("cpus={cpus}")));
    memory.into_iter().for_each(|memory| put(format!("memory={memory}")));
    storage.into_iter().for_each(|storage| put(format!("storage={storage}")));
    for (moment, commands) in &container.commands {
        let command = |words: &Command| match words.as_slice() {
            [shell, _, script] if shell == "/bin/sh" => format!("[sh: {script}]"),
            words => format!("[{}]", words.join("|")),
        };
        if !commands.is_empty() {
            put(format!("{}={}", moment.key(), commands.iter().map(command).collect::<String>()));
        }
    }
    if !container.ports.is_empty() {
        let port = |(host, guest): &Pair| match host == guest {
            true => guest.to_string(),
            false => format!("{host}>{guest}"),
        };
        put(format!("ports={}", container.ports.iter().map(port).collect::<Vec<_>>().join(",")));
    }
    for (kind, variables) in [("env", &container.env.container), ("remote", &container.env.remote)] {
        for (name, value) in variables {
            put(match value {
                Some(value) => format!("{kind} {name}={value}"),
                None => format!("{kind} {name} unset"),
            });
        }
    }
    for mount in &container.mounts {
        put(match mount {
            Mount::Volume(target) => format!("volume {target}"),
            Mount::Tmpfs(tmpfs) => format!("tmpfs {} {}", tmpfs.target, tmpfs.options),
        });
    }
    if let Some(user) = &container.user {
        put(format!("user={user}"));
    }
    match container.folder.as_ref().unwrap() {
        Folder { root, directory } if root != directory => put(format!("folder={root} in {directory}")),
        Folder { root, .. } if root != "/root/repo" => put(format!("folder={root}")),
        _ => {}
    }
    let ignored: Vec<_> = container.ignored.iter().map(|ignored| entry(&ignored.key, &ignored.why)).collect();
    if !ignored.is_empty() {
        put(format!("ignored {}", ignored.join(", ")));
    }
    parts.join("; ")
}

/// Reads a file, and formats the result.
pub fn read_as(text: &str, around: &Around) -> String {
    match Devcontainer::parse(text, around) {
        Ok(container) => match &container.unknown_image {
            Some(why) => format!("ERROR {why}"),
            None => shown(&container),
        },
        Err(why) => format!("ERROR {why}"),
    }
}

#[test]
fn every_form_is_read_as_documented() {
    let all = [SYNTAX, IMAGES, COMMANDS, VARIABLES, MOUNTS, USERS, PORTS, SIZES].concat();
    let differing: Vec<String> = all
        .iter()
        .filter_map(|(form, reference, ours)| {
            let found = read_as(form, &around());
            (found != *ours).then(|| {
                format!("{form}\n  reference: {reference}\n  expected: {ours}\n  found:    {found}\n")
            })
        })
        .collect();
    assert!(differing.is_empty(), "\n{}", differing.concat());
}
