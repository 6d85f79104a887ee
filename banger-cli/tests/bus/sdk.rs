//! The SDKs for Python and TypeScript: their own tests, their types, and what they do with this command.

use std::{
    env,
    fs::{self, create_dir_all},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::{
    host::{Host, skip},
    real::host_with_image,
};

/// Names a directory with mypy (`bin/mypy`) and with TypeScript (`node_modules`).
const TOOLS: &str = "BANGER_TEST_SDK_TOOLS";

fn sdk(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").join(name).canonicalize().unwrap()
}

/// Returns a file of the tools, or says why the test does not run.
fn tool(name: &str, what: &str) -> Option<PathBuf> {
    let tool = env::var_os(TOOLS).map(|tools| Path::new(&tools).join(name));
    let tool = tool.filter(|tool| tool.exists());
    if tool.is_none() {
        skip(&format!("{what}: `cargo xtask test` installs it, and sets {TOOLS}"));
    }
    tool
}

fn passes(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Returns Python with the SDK, which writes no compiled files next to it.
fn python() -> Command {
    let mut python = Command::new("python3");
    python.current_dir(sdk("python")).env("PYTHONPATH", "src").env("PYTHONDONTWRITEBYTECODE", "1");
    // A warning about what was left open is an error.
    python.args(["-W", "error", "-X", "dev"]);
    python
}

/// The compiled package, and a directory in which programs find it as `banger`.
struct Compiled(TempDir);

impl Compiled {
    fn new() -> Option<Self> {
        let modules = tool("node_modules", "TypeScript")?;
        let directory = tempfile::tempdir().unwrap();
        let package = directory.path().join("sdk/typescript");
        create_dir_all(&package).unwrap();
        symlink(sdk("tests"), directory.path().join("sdk/tests")).unwrap();
        for name in ["src", "test", "package.json", "tsconfig.json"] {
            symlink(sdk("typescript").join(name), package.join(name)).unwrap();
        }
        symlink(&modules, package.join("node_modules")).unwrap();
        create_dir_all(directory.path().join("user/node_modules")).unwrap();
        symlink(&package, directory.path().join("user/node_modules/banger")).unwrap();
        symlink(modules.join("@types"), directory.path().join("user/node_modules/@types")).unwrap();
        let compiled = Self(directory);
        // Paths of sources stay those of the links, so that the output is in this directory.
        passes(&compiled.tsc(&package, &["--preserveSymlinks", "true"]));
        Some(compiled)
    }

    fn tsc(&self, directory: &Path, more: &[&str]) -> Output {
        let tsc = self.0.path().join("sdk/typescript/node_modules/typescript/bin/tsc");
        Command::new("node").arg(tsc).args(more).current_dir(directory).output().unwrap()
    }

    fn package(&self) -> PathBuf {
        self.0.path().join("sdk/typescript")
    }

    fn user(&self) -> PathBuf {
        self.0.path().join("user")
    }
}

/// Gives a program the environment of this host, with its command as `banger`.
fn on_host(program: &mut Command, host: &Host) {
    let banger = host.command(&[]);
    for (name, value) in banger.get_envs() {
        match value {
            Some(value) => program.env(name, value),
            None => program.env_remove(name),
        };
    }
    let directory = Path::new(banger.get_program()).parent().unwrap();
    let path = env::join_paths(
        [directory.to_owned()].into_iter().chain(env::split_paths(&env::var("PATH").unwrap())),
    );
    program.env("PATH", path.unwrap());
    // The service of the tests has one image.
    program.env("BANGER_IMAGE", "debian");
}

/// Returns the blocks of a language in the page about the SDKs.
fn documented(language: &str) -> Vec<String> {
    let page = fs::read_to_string(sdk("..").join("docs/sdk.md")).unwrap();
    let mark = format!("```{language}\n");
    let blocks: Vec<String> =
        page.split(&mark).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect();
    assert!(blocks.len() > 3, "{} blocks in {language}", blocks.len());
    blocks
}

/// Returns whether a block of the page does what only the service with sandboxes in memory can do.
fn is_for_real_service(block: &str) -> bool {
    ["fork(", "suspend(", "events(", "snapshot("].iter().any(|word| block.contains(word))
}

#[test]
fn the_sdk_for_python_passes_its_tests() {
    let output = python().args(["-m", "unittest", "discover", "-s", "tests", "-t", "."]).output().unwrap();
    passes(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("\nOK") && errors.contains("Ran "), "{errors}");
    assert!(!errors.contains("Ran 0 tests"), "{errors}");
}

#[test]
fn the_sdk_for_python_has_the_types_that_it_promises() {
    let Some(mypy) = tool("bin/mypy", "mypy") else { return };
    let cache = tempfile::tempdir().unwrap();
    let mut check = Command::new(mypy);
    check.arg("--cache-dir").arg(cache.path()).current_dir(sdk("python"));
    passes(&check.output().unwrap());
}

#[test]
fn the_sdk_for_python_works_with_the_command() {
    let host = Host::new();
    let guest = host.path("guest");
    create_dir_all(&guest).unwrap();
    let mut contract = python();
    contract.args(["-m", "tests.contract", "agent"]).arg(&guest);
    on_host(&mut contract, &host);
    assert_eq!(passes(&contract.output().unwrap()), "ok\n");
    let Some(host) = host_with_image() else { return };
    let mut contract = python();
    contract.args(["-m", "tests.contract", "service"]).arg(&guest);
    on_host(&mut contract, &host);
    contract.env_remove("BANGER_IMAGE");
    assert_eq!(passes(&contract.output().unwrap()), "ok\n");
}

#[test]
fn the_python_of_the_page_about_sdks_runs() {
    let (host, real) = (Host::new(), host_with_image());
    for block in documented("python") {
        let host = if is_for_real_service(&block) { real.as_ref() } else { Some(&host) };
        let Some(host) = host else { continue };
        let directory = tempfile::tempdir().unwrap();
        let mut program = python();
        // The first block imports this, for those after it.
        let block = format!("from banger import Sandbox\n{block}");
        program
            .env("PYTHONPATH", sdk("python").join("src"))
            .args(["-c", &block])
            .current_dir(directory.path());
        on_host(&mut program, host);
        if real.as_ref().is_some_and(|real| std::ptr::eq(real, host)) {
            program.env_remove("BANGER_IMAGE");
        }
        passes(&program.output().unwrap());
    }
}

#[test]
fn the_sdk_for_typescript_passes_its_tests() {
    let Some(compiled) = Compiled::new() else { return };
    let mut test = Command::new("node");
    test.args(["--test", "--preserve-symlinks", "--preserve-symlinks-main", "test/calls.test.js"]);
    test.current_dir(compiled.package());
    let text = passes(&test.env_remove("NODE_TEST_CONTEXT").output().unwrap());
    assert!(text.contains("# fail 0") || text.contains("ℹ fail 0"), "{text}");
    // A file that could not be loaded or has no test counts as one.
    assert!(!text.contains("# tests 0") && !text.contains("# tests 1\n"), "{text}");
}

#[test]
fn the_sdk_for_typescript_works_with_the_command() {
    let Some(compiled) = Compiled::new() else { return };
    let host = Host::new();
    let guest = host.path("guest");
    create_dir_all(&guest).unwrap();
    let contract = |mode: &str, host: &Host| {
        let mut contract = Command::new("node");
        contract.args(["--preserve-symlinks-main", "--preserve-symlinks", "test/contract.js", mode]);
        contract.arg(&guest).current_dir(compiled.package());
        on_host(&mut contract, host);
        contract
    };
    assert_eq!(passes(&contract("agent", &host).output().unwrap()), "ok\n");
    let Some(host) = host_with_image() else { return };
    let mut contract = contract("service", &host);
    contract.env_remove("BANGER_IMAGE");
    assert_eq!(passes(&contract.output().unwrap()), "ok\n");
}

#[test]
fn the_typescript_of_the_page_about_sdks_runs() {
    let Some(compiled) = Compiled::new() else { return };
    let (host, real) = (Host::new(), host_with_image());
    let options =
        ["--module", "NodeNext", "--target", "ES2022", "--strict", "--types", "node", "--lib", "ES2022"];
    let blocks = documented("typescript");
    let names: Vec<String> = (0..blocks.len()).map(|number| format!("block{number}.mts")).collect();
    for (name, block) in names.iter().zip(&blocks) {
        fs::write(compiled.user().join(name), block).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    passes(&compiled.tsc(&compiled.user(), &[&options[..], &names].concat()));
    for (number, block) in blocks.iter().enumerate() {
        let host = if is_for_real_service(block) { real.as_ref() } else { Some(&host) };
        let Some(host) = host else { continue };
        let mut program = Command::new("node");
        program.arg(compiled.user().join(format!("block{number}.mjs")));
        on_host(&mut program, host);
        if real.as_ref().is_some_and(|real| std::ptr::eq(real, host)) {
            program.env_remove("BANGER_IMAGE");
        }
        passes(&program.output().unwrap());
    }
}
