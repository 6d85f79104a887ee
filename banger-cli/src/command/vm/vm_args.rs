//! The options for creating a sandbox.

use std::{collections::HashMap, time::Duration};

use banger_proto::bus::{
    ErrorName,
    names::VM_INTERFACE,
    option::{configure, create, lifetime, publish::scope, vmm},
    proxy::Options,
};
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use zbus::{OwnedObjectPath, Variant};

use super::{
    idle_policy::{IdlePolicy, idle_policy},
    numbers::positive,
    port_spec::{PortSpec, Wish},
    pulls::Pulls,
    restart_args::RestartArgs,
    size_args::{SizeArgs, with_default},
};
use crate::{
    client::{
        bus::Bus,
        job::Jobs,
        published_port::{PublishedPort, PublishedPorts},
        pull::PullPolicy,
        service::Kind,
    },
    command::complete,
    error::{Error, Result},
    ssh::keys,
    ui::{progress::Progress, signals::Listener},
    user::{
        defaults::Key,
        dirs::UserDirs,
        settings::{Settings, egress_words},
        timezone::{self, Timezone},
    },
};

/// A size of the system disk that no image fits into.
const TOO_SMALL: u64 = 1;

/// The options of a command that creates a sandbox.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "The sandbox", mut_args = with_default)]
pub struct VmArgs {
    /// Name [default: a generated one such as calm-otter]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Image to clone: a name from `banger image list` or a catalog, or a reference such as alpine:3.20
    /// [default: the service's]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// When to pull the image, and a missing default kernel, from a catalog or a registry [default: missing]
    #[arg(long, value_name = "WHEN")]
    pull: Option<PullPolicy>,
    /// Kernel to boot [default: the image's, else the service's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// The sizes that the user has given, if others were added.
    #[arg(skip)]
    given: Option<SizeArgs>,
    /// Give the sandbox internet access (NAT)
    #[arg(long, overrides_with = "no_nat")]
    nat: bool,
    /// Give the sandbox no internet access. This is the default, unless your settings say `nat = true`
    #[arg(long, overrides_with = "nat")]
    no_nat: bool,
    /// Let the sandbox reach only this beyond the host: `none`, `all`, presets such as `packages`, or
    /// HOST[:PORT][/PROTOCOL], where HOST is a name, `*.DOMAIN`, an address or a network. Can be repeated
    #[arg(long, value_name = "EGRESS", value_delimiter = ',', conflicts_with_all = ["nat", "no_nat"])]
    egress: Vec<String>,
    #[command(flatten)]
    restart: RestartArgs,
    /// Publish a port: [ADDRESS:][HOST:]GUEST[/PROTOCOL]. The address is 127.0.0.1 unless you give 0.0.0.0, which
    /// needs an administrator, as does a HOST below 1024. Without HOST, a free port is chosen and printed. Ports can be
    /// ranges
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<PortSpec>,
    /// Add a label; `banger vm list --filter` can select by labels
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// VMM to run it under [default: the best one that works]
    #[arg(long, value_name = "VMM", value_parser = [vmm::AUTO, vmm::FIRECRACKER, vmm::QEMU])]
    vmm: Option<String>,
    /// Time zone: a name such as Europe/Berlin, `host`, or `image` for the image's own [default: your setting
    /// `timezone`, else the host's]
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// What to do when the sandbox has been idle for this long: suspend=TIME, suspend-no-wake=TIME, stop=TIME or off [default: off]
    #[arg(long, value_name = "ACTION=TIME", value_parser = idle_policy)]
    idle: Option<IdlePolicy>,
    /// How long the guest may take to become ready [default: the service's]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    ready_timeout: Option<u32>,
    /// Use the options of this profile in your settings [default: that in BANGER_PROFILE]
    #[arg(long, value_name = "PROFILE", add = ArgValueCompleter::new(complete::profiles))]
    profile: Option<String>,
    /// Whether nobody logs in with ssh.
    #[arg(skip)]
    without_keys: bool,
}

/// What a program asks for a new sandbox.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Its name; a generated one if absent.
    pub name: Option<String>,
    /// The image; the user's or the service's default if absent.
    pub image: Option<String>,
    /// Its sizes.
    pub sizes: SizeArgs,
    /// The words of the policy for what it reaches beyond the host; none for nothing.
    pub egress: Vec<String>,
    /// Its labels.
    pub labels: Vec<(String, String)>,
}

/// Returns the user's public keys. Without any, only ssh does not work.
fn authorized_keys() -> Option<Vec<String>> {
    let keys = UserDirs::of_caller().and_then(|dirs| keys::public(&dirs));
    keys.map_err(|error| error.print(Some("nobody can log in to this sandbox with ssh"))).ok()
}

/// Returns whether an image is given by its id.
fn is_id(image: Option<&Variant<'_>>) -> bool {
    let is_id = |text: &str| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(image, Some(Variant::Str(text)) if is_id(text))
}

/// Returns whether a sandbox was refused because of its sizes.
fn is_size(error: &Error) -> bool {
    matches!(
        error.name(),
        Some(
            ErrorName::QuotaExceeded
                | ErrorName::InvalidOption
                | ErrorName::DiskTooSmall
                | ErrorName::NoSpace
        )
    )
}

/// Parses a key and a value, which may be empty.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key.is_empty() {
        true => Err("a label needs a key".to_owned()),
        false => Ok((key.to_owned(), value.to_owned())),
    }
}

impl VmArgs {
    /// Reads the user's settings, with the profile that was given.
    pub fn settings(&self) -> Result<Settings> {
        Settings::with_profile(self.profile.as_deref())
    }

    /// Returns the same options, with the user's defaults for those that were not given.
    pub fn with(&self, settings: &Settings) -> Self {
        let defaults = &settings.defaults;
        let or =
            |given: &Option<String>, key| given.clone().or_else(|| defaults.text(key).map(str::to_owned));
        let is_open = !self.nat && !self.no_nat && self.egress.is_empty();
        let egress = defaults.text(Key::Egress).map(egress_words).unwrap_or_default();
        let pull = defaults.text(Key::Pull).and_then(|word| PullPolicy::from_str(word, false).ok());
        Self {
            image: or(&self.image, Key::Image),
            kernel: or(&self.kernel, Key::Kernel),
            vmm: or(&self.vmm, Key::Vmm),
            timezone: or(&self.timezone, Key::Timezone),
            pull: self.pull.or(pull),
            sizes: self.sizes.with(defaults),
            restart: self.restart.with(defaults),
            nat: self.nat || (is_open && defaults.switch(Key::Nat).unwrap_or_default()),
            egress: if is_open { egress } else { self.egress.clone() },
            idle: self.idle.or_else(|| defaults.text(Key::Idle).and_then(|text| idle_policy(text).ok())),
            ready_timeout: self.ready_timeout.or_else(|| defaults.count(Key::ReadyTimeout)),
            ..self.clone()
        }
    }

    /// Creates the sandbox, and pulls its image first if necessary. Returns its object and the job that completes it.
    pub async fn create(
        &self,
        bus: &Bus,
        jobs: &Jobs,
        progress: &Progress,
        listener: &mut Listener,
        more: Options<'_>,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath)> {
        let mut options = self.options();
        options.extend(more);
        // One that is deleted when it stops cannot start again, whatever the user's settings say.
        if options.get(create::LIFETIME).is_some_and(|word| *word != Variant::from(lifetime::PERSISTENT)) {
            options.remove(create::RESTART);
            options.remove(create::AUTOSTART);
        }
        if let Some(zone) = self.timezone()? {
            options.insert(create::TIMEZONE, Variant::from(zone.name));
            if let Some(rule) = zone.rule {
                options.insert(create::TIMEZONE_RULE, Variant::from(rule));
            }
        }
        if !self.without_keys
            && let Some(keys) = authorized_keys()
        {
            options.insert(create::SSH_AUTHORIZED_KEYS, Variant::from(keys));
        }
        let wishes = self.published();
        if !wishes.is_empty() {
            let rows: Vec<_> =
                wishes.iter().map(|wish| (wish.protocol, wish.guest, wish.host, wish.scope)).collect();
            options.insert(create::PORTS, Variant::from(rows));
        }
        let name = self.name.as_deref().unwrap_or_default();
        let mut pulls = Pulls { bus, jobs, progress, listener };
        let policy = self.pull.unwrap_or_default();
        let mut is_smaller = false;
        if policy == PullPolicy::Always && self.image.is_some() {
            options.insert(create::IMAGE, Variant::from(pulls.image(self.image.as_deref()).await?));
        }
        loop {
            let refused = match bus.create_vm(name, &options).await {
                Err(error) if policy != PullPolicy::Never => error,
                created => {
                    let (vm, job) = created.map_err(|error| self.add_hint(error))?;
                    if is_smaller {
                        progress.note(
                            "note: this host cannot give the sizes that devcontainer.json requires; the sandbox gets \
                             the default ones.",
                        );
                    }
                    self.note_chosen_ports(bus, &vm, progress).await;
                    return Ok((vm, job));
                }
            };
            // The pulled objects are given by id from now on, so that nothing is pulled twice.
            match refused.name() {
                Some(ErrorName::NoSuchImage) if !is_id(options.get(create::IMAGE)) => {
                    let image = pulls.image(self.image.as_deref()).await;
                    let image = image.map_err(|error| self.not_pulled(refused, error))?;
                    options.insert(create::IMAGE, Variant::from(image));
                }
                Some(ErrorName::NoSuchKernel) if !options.contains_key(create::KERNEL) => {
                    let kernel = pulls.default_kernel().await;
                    let kernel = kernel.map_err(|error| self.not_pulled(refused, error))?;
                    options.insert(create::KERNEL, Variant::from(kernel));
                }
                _ if self.given.is_some() && is_size(&refused) && !is_smaller => {
                    is_smaller = true;
                    self.without_wishes(&mut options);
                }
                _ => return Err(self.add_hint(refused)),
            }
        }
    }

    /// Checks, before its image is there, whether the service would refuse a sandbox with these options for its name or for
    /// what it may reach. The service checks those before images and sizes, so it is asked for one that no image fits into.
    pub async fn check(&self, bus: &Bus) -> Result<()> {
        let name = self.name.as_deref().unwrap_or_default();
        if !name.is_empty()
            && let Ok(vm) = bus.find(Kind::Vm, name).await
        {
            let found = bus.properties(&vm, VM_INTERFACE).await?;
            if bus.is_own(&found) && found.name() == name {
                return Err(Error::Refused(format!("you already have a sandbox {name}"))
                    .with_hint("`--name NAME` chooses another name."));
            }
        }
        let mut options = self.options();
        options.remove(create::RESTART);
        options.remove(create::AUTOSTART);
        options.remove(create::IMAGE);
        options.insert(create::ROOT_SIZE, Variant::from(TOO_SMALL));
        options.insert(create::LIFETIME, Variant::from(lifetime::CALLER));
        let Err(refused) = bus.create_vm(name, &options).await else { return Ok(()) };
        match refused.name() {
            Some(ErrorName::NoSuchImage | ErrorName::NoSuchKernel | ErrorName::DiskTooSmall) => Ok(()),
            _ => Err(refused),
        }
    }

    /// Checks whether the service would refuse the sandbox of a build.
    pub async fn check_build(bus: &Bus) -> Result<()> {
        Self::throw_away(String::new(), None, SizeArgs::default()).check(bus).await
    }

    /// Removes sizes that the user has not given.
    fn without_wishes(&self, options: &mut Options<'_>) {
        for key in [create::VCPUS, create::MEMORY, create::ROOT_SIZE, create::DISK_SIZE] {
            options.remove(key);
        }
        if let Some(given) = &self.given {
            options.extend(given.options());
        }
    }

    fn timezone(&self) -> Result<Option<Timezone>> {
        timezone::from_setting(self.timezone.as_deref().unwrap_or(timezone::HOST))
    }

    /// Returns the error for a missing object that could not be pulled either.
    fn not_pulled(&self, missing: Error, error: Error) -> Error {
        // A build of the default image may lack something else.
        let is_nowhere = error.name().is_some() && error.name() == missing.name();
        // If the user named nothing, "in no catalog" is not helpful.
        if is_nowhere { self.add_hint(missing) } else { error }
    }

    /// Returns the options of a sandbox of this image, given by its id, in which a build runs. Nothing of the user goes
    /// into it.
    pub fn throw_away(image: String, kernel: Option<String>, sizes: SizeArgs) -> Self {
        Self {
            image: Some(image),
            pull: Some(PullPolicy::Missing),
            kernel,
            sizes,
            nat: true,
            timezone: Some(timezone::IMAGE.to_owned()),
            without_keys: true,
            ..Self::default()
        }
    }

    /// Returns the options that a program gives instead of a command line.
    pub fn wanted(wanted: Wanted) -> Self {
        let Wanted { name, image, sizes, egress, labels } = wanted;
        let (nat, no_nat) = (egress == ["all"], egress.is_empty());
        let egress = if nat { Vec::new() } else { egress };
        Self { name, image, sizes, nat, no_nat, egress, label: labels, ..Self::default() }
    }

    /// Returns the same options with this image, which is not pulled again if it is given by its id.
    pub fn with_image(&self, image: String) -> Self {
        let pull = match is_id(Some(&Variant::from(image.as_str()))) {
            true => Some(PullPolicy::Missing),
            false => self.pull,
        };
        Self { image: Some(image), pull, ..self.clone() }
    }

    /// Returns the same options with this image, if none was given.
    pub fn or_image(&self, image: Option<&str>) -> Self {
        let image = self.image.clone().or_else(|| image.map(str::to_owned));
        Self { image, ..self.clone() }
    }

    /// Returns the same options with these sizes, where none were given, and with these entries in the egress policy, unless
    /// all or nothing is asked for.
    pub fn with_preset(&self, sizes: SizeArgs, egress: &[String]) -> Self {
        let is_whole = |word: &String| ["all", "none"].contains(&word.as_str());
        let mut words = self.egress.clone();
        if !self.nat && !self.no_nat && !words.iter().any(is_whole) {
            match egress {
                [word] if word == "all" => words = egress.to_vec(),
                [word] if word == "none" => {}
                _ => words.extend(egress.iter().filter(|entry| !self.egress.contains(entry)).cloned()),
            }
        }
        let no_nat = self.no_nat || (!self.nat && words.is_empty());
        Self { sizes: self.sizes.or(&sizes), egress: words, no_nat, ..self.clone() }
    }

    /// Returns the same options with these sizes, where none were given. If the host cannot give them, the sandbox gets
    /// the default ones.
    pub fn or_sizes(&self, wishes: SizeArgs) -> Self {
        let sizes = self.sizes.or(&wishes);
        Self { sizes, given: Some(self.sizes.clone()), ..self.clone() }
    }

    /// Returns the image that was given.
    pub fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// Returns the ports to publish.
    pub fn published(&self) -> Vec<Wish> {
        self.publish.iter().flat_map(|spec| spec.wishes(scope::LOOPBACK)).collect()
    }

    /// Prints the ports that the service has chosen.
    async fn note_chosen_ports(&self, bus: &Bus, vm: &OwnedObjectPath, progress: &Progress) {
        let wishes = self.published();
        if wishes.iter().all(|wish| wish.host != 0) {
            return;
        }
        // Without it, `banger vm publish` still shows them.
        let Ok(sandbox) = bus.properties(vm, VM_INTERFACE).await else { return };
        let is_given = |port: &PublishedPort| {
            wishes.iter().any(|wish| (wish.protocol, wish.host) == (port.protocol.as_str(), port.host_port))
        };
        for port in PublishedPorts::of(&sandbox).ports.iter().filter(|port| !is_given(port)) {
            let PublishedPort { protocol, host_address, guest_port, host_port } = port;
            let name = sandbox.name();
            progress
                .note(&format!("{host_address}:{host_port} reaches port {guest_port}/{protocol} of {name}."));
        }
    }

    /// Returns whether the sandbox gets all internet access.
    pub fn nat(&self) -> bool {
        self.nat || self.egress == ["all"]
    }

    /// Returns whether the sandbox reaches anything on the internet.
    pub fn has_egress(&self) -> bool {
        self.nat || !(self.egress.is_empty() || self.egress == ["none"])
    }

    /// Returns whether the options say what the sandbox reaches beyond the host.
    pub fn chooses_egress(&self) -> bool {
        self.nat || self.no_nat || !self.egress.is_empty()
    }

    /// Returns whether the sandbox reaches only what a policy lists.
    pub fn is_restricted(&self) -> bool {
        self.has_egress() && !self.nat()
    }

    /// Returns the name that was given.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns how long the guest may take to become ready, in microseconds, if that was given.
    pub fn ready_timeout(&self) -> Option<u64> {
        let timeout = Duration::from_secs(u64::from(self.ready_timeout?)).as_micros();
        Some(u64::try_from(timeout).unwrap_or(u64::MAX))
    }

    /// Returns what the options change in a sandbox that exists. Fails if they include what is chosen only once, for a
    /// sandbox that boots.
    pub fn changes(&self) -> Result<Options<'_>> {
        let mut changes = self.options();
        changes.remove(create::READY_TIMEOUT);
        if self.no_nat {
            changes.insert(configure::NAT, Variant::from(false));
        }
        let can_change = [configure::NAT, configure::EGRESS, configure::LABELS];
        let is_whole = self.publish.is_empty()
            && self.pull.is_none()
            && self.timezone.is_none()
            && self.profile.is_none();
        match is_whole && changes.keys().all(|key| can_change.contains(key)) {
            true => Ok(changes),
            false => Err(Error::Usage(
                "--from-snapshot makes the sandbox as it was; only its name, labels and internet access can differ"
                    .to_owned(),
            )),
        }
    }

    fn options(&self) -> Options<'_> {
        let mut options: Options<'_> = self.sizes.options();
        if let Some(image) = &self.image {
            options.insert(create::IMAGE, Variant::from(image.as_str()));
        }
        if let Some(kernel) = &self.kernel {
            options.insert(create::KERNEL, Variant::from(kernel.as_str()));
        }
        options.extend(self.restart.options());
        if self.nat {
            options.insert(create::NAT, Variant::from(true));
        }
        if !self.egress.is_empty() {
            options.insert(create::EGRESS, Variant::from(self.egress.clone()));
        }
        if !self.label.is_empty() {
            let labels: HashMap<&str, &str> =
                self.label.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            options.insert(create::LABELS, Variant::from(labels));
        }
        if let Some(vmm) = &self.vmm {
            options.insert(create::VMM, Variant::from(vmm.as_str()));
        }
        if let Some(policy) = self.idle {
            options.extend(policy.options());
        }
        if let Some(timeout) = self.ready_timeout() {
            options.insert(create::READY_TIMEOUT, Variant::from(timeout));
        }
        options
    }

    /// Adds a hint for a missing default image or kernel.
    fn add_hint(&self, error: Error) -> Error {
        match error.name() {
            Some(ErrorName::NoSuchImage) if self.image.is_none() && self.pull == Some(PullPolicy::Never) => error.with_hint(
                "the default image is not on this host, and `--pull never` forbids pulling it: leave that \
                 out, or choose one of `banger image list` with `--image NAME`.",
            ),
            Some(ErrorName::NoSuchImage) if self.image.is_none() => error.with_hint(
                "the default image is not on this host, and neither a catalog nor a recipe has it: `banger image \
                 build RECIPE` builds an image, `--image alpine` pulls one from a registry, and `banger image \
                 list` lists the images on this host.",
            ),
            Some(ErrorName::AlreadyInUse) if !self.publish.is_empty() => error.with_hint(
                "nothing was created; choose another port of the host, or give only the guest's to get a free one.",
            ),
            Some(ErrorName::DiskTooSmall) => error.with_hint(
                "`banger image show IMAGE` shows the size of an image; without `--root-size`, the system disk has that.",
            ),
            Some(ErrorName::NoSuchKernel) if self.kernel.is_none() => error.with_hint(
                "the default kernel is not on this host, and no catalog has it: `banger kernel import --name \
                 NAME --vmlinuz FILE --modules DIRECTORY` adds a kernel, and `--kernel NAME` chooses another \
                 one of `banger kernel list`.",
            ),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{cli::parse_args, command::vm::pulls, ui::wording::of_service, user::defaults::Defaults};

    fn parse(line: &str) -> Result<VmArgs, String> {
        parse_args(line).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_become_options_of_the_right_type() {
        let vm = parse(
            "--image debian --kernel k --vcpu 2 --memory 512MiB --disk-size 8G --root-size 20G --vmm qemu \
             --ready-timeout 90 --idle stop=2h",
        );
        let vm = vm.unwrap();
        let expect = Options::from([
            ("image", Variant::from("debian")),
            ("kernel", Variant::from("k")),
            ("vcpus", Variant::from(2u32)),
            ("memory", Variant::from(512u64 << 20)),
            ("disk-size", Variant::from(8u64 << 30)),
            ("root-size", Variant::from(20u64 << 30)),
            ("vmm", Variant::from("qemu")),
            ("ready-timeout-usec", Variant::from(90_000_000u64)),
            ("idle-action", Variant::from("stop")),
            ("idle-after-usec", Variant::from(7_200_000_000u64)),
        ]);
        assert_eq!(vm.options(), expect);
        assert_eq!(parse("").unwrap().options(), Options::new());
        assert_eq!(parse("--disk 20G").unwrap().options(), parse("--root-size 20G").unwrap().options());
    }

    #[test]
    fn what_a_sandbox_of_a_snapshot_can_change() {
        let keys = |line: &str| {
            let vm = parse(line).unwrap();
            let mut keys: Option<Vec<_>> =
                vm.changes().ok().map(|changes| changes.into_keys().map(str::to_owned).collect());
            keys.iter_mut().for_each(|keys| keys.sort());
            keys
        };
        let some = |keys: &[&str]| Some(keys.iter().map(ToString::to_string).collect());
        assert_eq!(keys("--name web --ready-timeout 90"), some(&[]));
        assert_eq!(keys("-l a=b --egress packages"), some(&["egress", "labels"]));
        assert_eq!((keys("--nat"), keys("--no-nat")), (some(&["nat"]), some(&["nat"])));
        for line in
            ["--image x", "--kernel x", "--vcpu 2", "--memory 1G", "-p 80", "--pull always", "--vmm qemu"]
        {
            assert_eq!(keys(line), None, "{line}");
        }
        assert_eq!(keys("--profile work"), None);
        assert_eq!((keys("--timezone UTC"), keys("--idle off"), keys("--autostart")), (None, None, None));
    }

    #[test]
    fn defaults_fill_in_what_the_command_line_leaves_out() {
        let values = [
            (Key::Image, "debian"),
            (Key::Memory, "2GiB"),
            (Key::Vcpus, "3"),
            (Key::Nat, "true"),
            (Key::Pull, "never"),
            (Key::Vmm, "qemu"),
            (Key::Timezone, "UTC"),
            (Key::Idle, "suspend=30m"),
            (Key::Restart, "on-failure"),
            (Key::Autostart, "true"),
        ];
        let values = values.map(|(key, text)| (key, key.parse(text).unwrap()));
        let defaults = Defaults::of([(values.into(), "file".to_owned())]);
        let settings = Settings { defaults, ..Settings::default() };
        let with = |line: &str| parse(line).unwrap().with(&settings);
        assert_eq!(
            with("").options(),
            parse(
                "--image debian --memory 2GiB --vcpu 3 --nat --vmm qemu --idle suspend=30m --restart on-failure \
                 --autostart"
            )
                .unwrap()
                .options()
        );
        assert_eq!(with("--idle off").options()["idle-action"], Variant::from(""));
        assert_eq!(
            (with("").pull, with("--pull always").pull),
            (Some(PullPolicy::Never), Some(PullPolicy::Always))
        );
        assert_eq!(with("--no-nat --image x").options()["image"], Variant::from("x"));
        let by_itself = with("--restart no --no-autostart");
        assert_eq!(by_itself.options()["restart"], Variant::from("no"));
        assert_eq!(by_itself.options()["autostart"], Variant::from(false));
        assert!(!with("--no-nat").nat() && with("--no-nat --nat").nat());
        let list = with("--egress git,a.example --egress b.example");
        assert_eq!(list.options()["egress"], Variant::from(vec!["git", "a.example", "b.example"]));
        assert!(!list.nat() && list.has_egress() && !list.options().contains_key("nat"));
        assert!(with("--egress all").nat() && !with("--egress none").has_egress());
        assert!(list.is_restricted() && !with("").is_restricted() && !with("--egress none").is_restricted());
        assert!(parse("--egress git --nat").is_err());
        assert_eq!(with("").timezone.as_deref(), Some("UTC"));
        assert!(!parse("").unwrap().with(&Settings::default()).nat());
    }

    #[test]
    fn entries_are_added_to_the_policy_of_a_preset() {
        let check = |line: &str, preset: &[&str], expect: &[&str]| {
            let preset: Vec<String> = preset.iter().map(ToString::to_string).collect();
            let vm = parse(line).unwrap().with_preset(SizeArgs::default(), &preset);
            assert_eq!(vm.egress, expect, "{line} and {preset:?}");
            assert_eq!(vm.has_egress(), vm.nat || !["none", ""].contains(&expect.concat().as_str()));
        };
        check("", &["git"], &["git"]);
        check("--egress git,a.example", &["git", "b.example"], &["git", "a.example", "b.example"]);
        check("--egress a.example", &["all"], &["all"]);
        check("--egress a.example", &["none"], &["a.example"]);
        check("--egress none", &["git"], &["none"]);
        check("--nat", &["git"], &[]);
        check("", &["none"], &[]);
    }

    #[test]
    fn ports_are_published_on_the_loopback_unless_an_address_is_given() {
        let published =
            parse("-p 8080:80 -p 0.0.0.0:53:53/udp --publish 1-2:81-82 -p 80").unwrap().published();
        let rows: Vec<_> =
            published.iter().map(|wish| (wish.protocol, wish.guest, wish.host, wish.scope)).collect();
        let expect = [
            ("tcp", 80, 8080, "loopback"),
            ("udp", 53, 53, "all"),
            ("tcp", 81, 1, "loopback"),
            ("tcp", 82, 2, "loopback"),
            ("tcp", 80, 0, "loopback"),
        ];
        assert_eq!(rows, expect);
        assert!(parse("-p 80/sctp").is_err());
    }

    #[test]
    fn impossible_sizes_are_refused_before_the_service_is_asked() {
        for line in [
            "--vcpu 0",
            "--vcpu -1",
            "--memory 0",
            "--memory lots",
            "--disk-size 4parsecs",
            "--root-size 0",
            "--ready-timeout 0",
            "--vmm bochs",
            "--restart sometimes",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_system_disk_smaller_than_its_image_is_explained() {
        let refused = of_service(ErrorName::DiskTooSmall);
        let hint = parse("--root-size 1G").unwrap().add_hint(refused).hint().unwrap();
        assert!(hint.contains("`banger image show IMAGE`"), "{hint}");
        let other = of_service(ErrorName::InvalidOption);
        assert!(parse("--root-size 1G").unwrap().add_hint(other).hint().is_none());
    }

    #[test]
    fn a_default_image_that_is_missing_is_explained() {
        let no_image = || Error::named("dev.banger.Error.NoSuchImage", "there is no image debian-bookworm");
        let hint = |line: &str| parse(line).unwrap().add_hint(no_image()).hint().unwrap();
        assert!(hint("").contains("default image"), "{}", hint(""));
        assert!(!hint("--image x").contains("default image"));
    }

    #[test]
    fn hints_about_missing_images_and_kernels() {
        use crate::ui::wording::{check, shown};

        let hint = |line: &'static str, name| (line, parse(line).unwrap().add_hint(of_service(name)));
        let refused = of_service(ErrorName::RegistryAuthRequired);
        let errors = [
            hint("", ErrorName::NoSuchImage),
            hint("--pull never", ErrorName::NoSuchImage),
            hint("--image x", ErrorName::NoSuchImage),
            hint("--memory 1G", ErrorName::NoSuchKernel),
            hint("-p 8080:80", ErrorName::AlreadyInUse),
            ("--image debain", pulls::explain("debain", refused)),
        ];
        check("hints_about_missing_images", &shown(errors));
    }
}
