//! The user's settings: defaults, profiles, the environment, and proxies.

use std::{fs, net::TcpListener};

use serde_json::Value;

use crate::host::{Ended, Host};

const SETTINGS: &str = "\
[defaults]
image = 'debian'
memory = '2GiB'
nat = true

[profiles.large]
memory = '8GiB'
vcpus = 6
";

/// Returns a host with a service, and these settings.
fn host(settings: &str) -> Host {
    let host = Host::new();
    let directory = host.home().join(".config/banger");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("config.toml"), settings).unwrap();
    host
}

fn run(host: &Host, args: &[&str], env: &[(&str, &str)]) -> Ended {
    let output = host.command(args).envs(env.iter().copied()).output().unwrap();
    Ended {
        status: output.status.code().unwrap(),
        output: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn sandboxes_get_the_defaults_of_their_user_unless_something_counts_more() {
    let host = host(SETTINGS);
    let gib = |count: u64| (count << 30).to_string();
    for (more, env, expect) in [
        (&[][..], &[][..], ["\"debian\"", &gib(2), "", "true"]),
        (&["--profile", "large"], &[], ["\"debian\"", &gib(8), "6", "true"]),
        (&[], &[("BANGER_PROFILE", "large")], ["\"debian\"", &gib(8), "6", "true"]),
        (
            &["--profile", "large"],
            &[("BANGER_MEMORY", "4GiB"), ("BANGER_NAT", "0")],
            ["\"debian\"", &gib(4), "6", ""],
        ),
        (
            &["--memory", "1GiB", "--no-nat", "--image", "debian"],
            &[("BANGER_MEMORY", "4GiB")],
            ["\"debian\"", &gib(1), "", ""],
        ),
    ] {
        let ended = run(&host, &[&["vm", "create", "-q", "--no-start"], more].concat(), env);
        assert_eq!(ended.status, 0, "{ended:?}");
        let calls = host.calls("CreateVM");
        let options = &calls.last().unwrap().options;
        let option = |name: &str| options.get(name).cloned().unwrap_or_default();
        assert_eq!(["image", "memory", "vcpus", "nat"].map(option), expect, "{more:?} {env:?}");
    }
}

#[test]
fn a_mistake_in_the_settings_is_reported_before_anything_is_created() {
    let host = host("[defaults]\n\nimmage = 'debian'\n");
    for verb in [&["vm", "create"][..], &["vm", "run", "--rm"], &["config", "show"]] {
        let ended = host.banger(verb);
        assert!(ended.status != 0, "{ended:?}");
        assert!(
            ended.errors.contains(
                "/config.toml.\n  because: line 3: there is no key immage in [defaults]; did you mean image?\n"
            ),
            "{ended:?}"
        );
    }
    fs::write(host.home().join(".config/banger/config.toml"), SETTINGS).unwrap();
    let ended = host.banger(&["vm", "create", "--profile", "lagre"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.starts_with("error: there is no profile lagre; did you mean large?"), "{ended:?}");
    let ended = run(&host, &["vm", "create"], &[("BANGER_VCPUS", "many")]);
    assert!(ended.errors.starts_with("error: cannot use the variable BANGER_VCPUS: "), "{ended:?}");
    assert!(host.calls("CreateVM").is_empty());
}

#[test]
fn each_setting_is_shown_with_its_origin() {
    let host = host(SETTINGS);
    let args = ["config", "show", "--origin", "--json", "--profile", "large"];
    let shown: Value = serde_json::from_str(&run(&host, &args, &[("BANGER_USER", "dev")]).output).unwrap();
    let file = host.home().join(".config/banger/config.toml").display().to_string();
    for (key, value, origin) in [
        ("profile", Value::from("large"), "--profile".to_owned()),
        ("user", "dev".into(), "BANGER_USER".to_owned()),
        ("memory", (8u64 << 30).into(), format!("{file}, [profiles.large]")),
        ("image", "debian".into(), format!("{file}, [defaults]")),
        ("nat", true.into(), format!("{file}, [defaults]")),
        ("disk_size", Value::Null, "default".to_owned()),
        ("wait", "init".into(), "default".to_owned()),
        ("git_identity", true.into(), "default".to_owned()),
    ] {
        assert_eq!((&shown[key]["value"], &shown[key]["origin"]), (&value, &origin.into()), "{key}");
    }
    let table = host.banger(&["config", "show"]).output;
    assert!(table.contains("memory         2 GiB\n") && table.contains("disk_size      -\n"), "{table}");
}

#[test]
fn proxies_are_passed_on_when_asked_for() {
    let host = host("");
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "box", "--image", "debian"]).status, 0);
    // It is in use on this host, which is the sandbox as well, so the relay gets another port.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = proxy.local_addr().unwrap().port();
    let address = format!("http://ann:secret@127.0.0.1:{port}");
    let env = [("HTTP_PROXY", address.as_str()), ("no_proxy", "example.org")];
    let env = [&env[..], &[("http_proxy", ""), ("all_proxy", ""), ("https_proxy", "")]].concat();
    let print = ["--", "sh", "-c", "echo \"$http_proxy $HTTP_PROXY $no_proxy\""];
    let exec = |more: &[&str]| run(&host, &[&["vm", "exec", "-T"], more, &["box"], &print].concat(), &env);
    let ended = exec(&["--proxy"]);
    let words: Vec<&str> = ended.output.split_whitespace().collect();
    assert_eq!((ended.status, words[0]), (0, words[1]), "{ended:?}");
    assert!(words[0].starts_with("http://ann:secret@127.0.0.1:") && words[0] != address, "{ended:?}");
    assert_eq!(words[2], "example.org,localhost,127.0.0.1,::1,.vm,box");
    let none = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"].map(|name| (name, ""));
    let upper = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY"].map(|name| (name, ""));
    let ended = run(&host, &["vm", "exec", "--proxy", "box", "--", "true"], &[none, upper].concat());
    assert!(ended.status == 0 && ended.errors.starts_with("note: there is no proxy to pass on"), "{ended:?}");
    // What the user sets for the command stays.
    assert!(exec(&["--proxy", "-e", "http_proxy=mine"]).output.starts_with("mine http://ann"));
    let ended = exec(&["--proxy", "--detach"]);
    assert!(ended.status == 125 && ended.errors.contains("`--no-proxy`"), "{ended:?}");
    let args = ["vm", "run", "--rm", "-q", "--image", "debian", "--name", "box-2", "--proxy"];
    let ended = run(&host, &[&args[..], &print].concat(), &env);
    assert!(ended.status == 0 && ended.output.starts_with("http://ann:secret@127.0.0.1:"), "{ended:?}");
    let made = host.calls("CreateVM").len();
    let wrong = [("http_proxy", "http://ann:secret@x:y")];
    for args in [&["vm", "exec", "--proxy", "box", "--", "true"][..], &[&args[..], &["--", "true"]].concat()]
    {
        let ended = run(&host, args, &wrong);
        assert!(ended.status == 125 && ended.errors.contains("the variable http_proxy"), "{ended:?}");
        assert!(!ended.errors.contains("secret"), "{ended:?}");
    }
    assert_eq!(host.calls("CreateVM").len(), made);
}
