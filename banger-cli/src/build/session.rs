//! Runs a build in a throw-away sandbox.

use std::{
    collections::HashMap,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use banger_copy::{Ownership, Packer};
use banger_proto::{
    bus::{
        ErrorName,
        names::IMAGE_INTERFACE,
        option::{commit, create, delete, lifetime, pull as pull_option},
        proxy::Options,
    },
    guest::{
        Exec, Frame, Request as GuestRequest,
        frame::MAX_DATA,
        message::{CopyIn, CopyOwner, Placement},
    },
};
use zbus::{OwnedObjectPath, Variant};

use super::{
    context::Context,
    events::Reporter,
    instruction::Recipe,
    plan::{self, Act, Config, Plan, Step},
};
use crate::{
    client::{
        bus::Bus,
        job::Jobs,
        object::Object,
        pull::{self, PullPolicy},
        service::{Kind, id_of},
    },
    command::vm::{size_args::SizeArgs, vm_args::VmArgs},
    error::{Error, Result},
    guest::agent::{Call, Guest, from_copy, protocol_error},
    ui::{
        sanitize,
        signals::{Listener, Signals},
    },
};

/// How long to wait for the deletion of the sandbox; then the service completes it alone.
const DELETE_TIMEOUT: Duration = Duration::from_secs(20);
/// The label that says which recipe an image was built from.
const RECIPE: &str = "dev.banger.recipe";

/// What to build, and how.
pub struct Request<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The name of the image.
    pub name: &'a str,
    /// Values for arguments of the recipe.
    pub arguments: &'a [(String, String)],
    /// Whether to replace an image of this name.
    pub force: bool,
    /// Whether to keep the sandbox after a failure.
    pub keep: bool,
    /// When to pull the base image.
    pub pull: PullPolicy,
    /// The kernel of the sandbox.
    pub kernel: Option<String>,
    /// The sizes of the sandbox.
    pub sizes: SizeArgs,
}

/// The connection to the service, and where to report.
struct Session<'a> {
    bus: &'a Bus,
    jobs: &'a Jobs,
    reporter: &'a Reporter,
    listener: &'a mut Listener,
}

/// The image that a build starts from.
struct Base {
    image: OwnedObjectPath,
    /// It was pulled for this build.
    is_temporary: bool,
}

/// Builds an image. Returns its object. A failure leaves nothing behind.
pub async fn build(
    bus: &Bus,
    jobs: &Jobs,
    reporter: &Reporter,
    listener: &mut Listener,
    request: &Request<'_>,
) -> Result<OwnedObjectPath> {
    let reference = plan::base(request.recipe, request.arguments)?;
    plan::check_arguments(request.recipe, request.arguments)?;
    Context::open(&request.recipe.context)?;
    let mut session = Session { bus, jobs, reporter, listener };
    session.require_free_name(request).await?;
    VmArgs::check_build(bus).await.map_err(hint_ceiling)?;
    let base = session.base(&reference, request.pull).await?;
    let built = session.build_on(&base.image, request).await;
    if base.is_temporary {
        // Its layers stay in the cache. Another build may use it by now.
        let _ = bus.delete(Kind::Image, &base.image).await;
    }
    built
}

/// Adds a hint if the administrator's ceiling of egress forbids builds.
fn hint_ceiling(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::QuotaExceeded) => error.with_hint(
            "no image can be built on this host; an administrator can register one that was built elsewhere and promote it, \
             and `--image IMAGE` of `banger vm run` and `banger agent` chooses another.",
        ),
        _ => error,
    }
}

impl Session<'_> {
    /// Refuses a name that is taken before the work begins.
    async fn require_free_name(&self, request: &Request<'_>) -> Result<()> {
        let found = match self.bus.find(Kind::Image, request.name).await {
            Ok(found) if !request.force => self.bus.properties(&found, IMAGE_INTERFACE).await?,
            _ => return Ok(()),
        };
        match self.bus.is_own(&found) && found.name() == request.name {
            true => Err(Error::Refused(format!("you already have an image {}", request.name))
                .with_hint("`--force` replaces it, and `--name NAME` builds another one.")),
            false => Ok(()),
        }
    }

    /// Finds the base image, or pulls it.
    async fn base(&mut self, reference: &str, policy: PullPolicy) -> Result<Base> {
        if policy != PullPolicy::Always {
            match self.bus.find(Kind::Image, reference).await {
                Ok(image) => return Ok(Base { image, is_temporary: false }),
                Err(error) if policy == PullPolicy::Never => return Err(error),
                // The registry says what is wrong with it.
                Err(_) => {}
            }
        }
        // The usual name could be that of the new image.
        let digest = super::instruction::digest(reference);
        // Another build may need the same base at the same time.
        let name = format!("base-{}-{}", &digest[7..15], std::process::id());
        let options = Options::from([(pull_option::NAME, Variant::from(name))]);
        let progress = self.reporter.progress();
        let pulled = pull::image(self.bus, self.jobs, progress, self.listener, reference, options).await;
        Ok(Base { image: pulled?.0, is_temporary: true })
    }

    async fn build_on(&mut self, base: &OwnedObjectPath, request: &Request<'_>) -> Result<OwnedObjectPath> {
        let image = self.bus.properties(base, IMAGE_INTERFACE).await?.json();
        let plan = plan::plan(request.recipe, Config::of_image(&image["config"]), request.arguments)?;
        let vm_args = VmArgs::throw_away(id_of(base), request.kernel.clone(), request.sizes.clone());
        let more = Options::from([(create::LIFETIME, Variant::from(lifetime::CALLER))]);
        let progress = self.reporter.progress();
        let created = vm_args.create(self.bus, self.jobs, progress, self.listener, more).await;
        let (vm, job) = created?;
        let booted = self.jobs.finish(self.bus, &job, progress.track(None), self.listener).await;
        let built = match booted {
            Ok(_) => self.run(&vm, &plan, request).await,
            Err(error) => Err(error),
        };
        match built {
            Err(error) if request.keep && !error.is_interrupted() => Err(self.keep(&vm, error).await),
            built => {
                self.remove(&vm).await;
                built
            }
        }
    }

    /// Runs the steps, and makes an image of the disk.
    async fn run(
        &mut self,
        vm: &OwnedObjectPath,
        plan: &Plan,
        request: &Request<'_>,
    ) -> Result<OwnedObjectPath> {
        let mut guest = Guest::new(self.bus.clone(), vm.clone(), self.listener.resubscribe());
        for (index, step) in (1..).zip(&plan.steps) {
            self.reporter.step(index, plan.steps.len(), step.line, &step.shown);
            self.step(&mut guest, step, &plan.context).await.map_err(|error| failed(request, step, error))?;
        }
        guest.call(GuestRequest::PrepareCommit, |call| call.finish()).await?;
        let job = self.bus.change_vm(vm, "Stop", &Options::new()).await?;
        let progress = self.reporter.progress();
        self.jobs.finish(self.bus, &job, progress.track(None), self.listener).await?;
        let job = self.bus.commit_vm(vm, request.name, &commit_options(plan, request)).await?;
        let facts = self.jobs.finish(self.bus, &job, progress.track(None), self.listener).await?;
        let image = facts.get("image").and_then(|path| OwnedObjectPath::try_from(path.clone()).ok());
        image.ok_or_else(|| Error::Refused("the service did not say which image it made".to_owned()))
    }

    async fn step(&self, guest: &mut Guest, step: &Step, context: &Context) -> Result<()> {
        match &step.act {
            Act::Run { argv, env, directory, user } => {
                let exec = Exec {
                    argv: argv.clone(),
                    env: env.clone(),
                    cwd: Some(directory.clone()),
                    // The group is that of the user.
                    user: user.split(':').next().map(str::to_owned),
                    ..Exec::default()
                };
                self.exec(guest, exec).await
            }
            Act::Copy { sources, to, owner } => {
                for source in sources {
                    self.copy(guest, source, to, owner, context).await?;
                }
                Ok(())
            }
            Act::Write { path, mode, content } => write(guest, path, *mode, content.clone()).await,
            Act::Directory(path) => put(guest, path, |_| Ok(())).await,
        }
    }

    async fn exec(&self, guest: &mut Guest, exec: Exec) -> Result<()> {
        let mut output = self.reporter.output();
        guest
            .call(GuestRequest::Exec(exec), move |call| {
                call.end_input()?;
                let status = status(call, |bytes| output.add(bytes));
                output.finish(!matches!(status, Ok(0)));
                match status? {
                    0 => Ok(()),
                    status => Err(Error::Refused(format!("it exited with status {status}"))),
                }
            })
            .await
    }

    async fn copy(
        &self,
        guest: &mut Guest,
        source: &Path,
        to: &str,
        owner: &str,
        context: &Context,
    ) -> Result<()> {
        let failed = |error| Error::io(format!("read {}", source.display()), error);
        let is_directory = fs::symlink_metadata(source).map_err(failed)?.is_dir();
        let name = source.file_name().filter(|_| !is_directory).map(|name| name.to_owned());
        let top = name.as_ref().map(|name| {
            let text = name.to_str().map(str::to_owned);
            text.ok_or_else(|| Error::Refused(format!("the name of {} is not UTF-8", source.display())))
        });
        // The content of a directory goes into the destination.
        let to = if is_directory && !to.ends_with('/') { format!("{to}/") } else { to.to_owned() };
        let request = CopyIn { to, top: top.transpose()?, owner: CopyOwner::User(owner.to_owned()) };
        let (source, context) = (source.to_owned(), context.clone());
        let notes = guest
            .call(GuestRequest::CopyIn(request), move |call| {
                let output = std::io::BufWriter::with_capacity(MAX_DATA, &mut *call);
                let mut packer = Packer::new(output, Ownership::Root).leave_out(left_out(&source, context));
                packer.add(&source, name.as_deref()).map_err(from_copy)?;
                let (output, notes) = packer.finish().map_err(from_copy)?;
                drop(output);
                call.end_input()?;
                call.finish()?;
                Ok([notes.into_lines(), call.notes()].concat())
            })
            .await?;
        notes.iter().for_each(|note| self.reporter.note(&format!("note: {}.", sanitize::line(note))));
        Ok(())
    }

    /// Keeps the sandbox of a failed build.
    async fn keep(&self, vm: &OwnedObjectPath, error: Error) -> Error {
        let kept = self.bus.set_lifetime(vm, lifetime::PERSISTENT).await;
        let sandbox = self.bus.properties(vm, Kind::Vm.interface()).await;
        match (kept, sandbox) {
            (Ok(()), Ok(sandbox)) => {
                let name = sandbox.name();
                error.with_hint(format!(
                    "its sandbox was kept: `banger vm exec {name}` opens a shell in it, `banger vm delete \
                     --force {name}` deletes it."
                ))
            }
            _ => error,
        }
    }

    /// Deletes the sandbox. If this fails, the service does it when this process ends.
    async fn remove(&self, vm: &OwnedObjectPath) {
        let options = Options::from([(delete::FORCE, Variant::from(true))]);
        let removal = async {
            // The signal that has ended the build must not end this, too.
            let mut listener = Signals::catch()?.listen();
            let job = self.bus.change_vm(vm, "Delete", &options).await?;
            self.jobs.finish(self.bus, &job, self.reporter.progress().track(None), &mut listener).await
        };
        let _ = tokio::time::timeout(DELETE_TIMEOUT, removal).await;
    }
}

/// Returns what `.dockerignore` leaves out below a source.
fn left_out(source: &Path, context: Context) -> impl Fn(&Path) -> bool + 'static {
    let below = source.strip_prefix(context.root()).unwrap_or(Path::new("")).to_owned();
    move |relative: &Path| {
        let path: PathBuf = below.join(relative);
        let is_directory =
            || fs::symlink_metadata(context.root().join(&path)).is_ok_and(|found| found.is_dir());
        context.prunes(&path) || (context.ignores(&path) && !is_directory())
    }
}

/// Returns the status of a program, and passes its output on.
fn status(call: &mut Call, mut show: impl FnMut(&[u8])) -> Result<u8> {
    loop {
        match call.frame()? {
            Frame::Output(bytes) | Frame::ErrorOutput(bytes) => show(&bytes),
            Frame::Exit(exit) => return Ok(exit.status()),
            Frame::Failed(failure) => return Err(Error::Guest(failure)),
            Frame::Started(_) | Frame::Window(_) => {}
            _ => return Err(protocol_error()),
        }
    }
}

async fn write(guest: &mut Guest, path: &str, mode: u32, content: Vec<u8>) -> Result<()> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = if directory.is_empty() { "/" } else { directory };
    let name = PathBuf::from(std::ffi::OsStr::from_bytes(name.as_bytes()));
    put(guest, directory, move |packer| packer.add_bytes(&name, mode, &content)).await
}

/// Creates a directory if it is missing, and unpacks an archive there.
async fn put(
    guest: &mut Guest,
    directory: &str,
    add: impl FnOnce(&mut Packer<std::io::BufWriter<&mut Call>>) -> banger_copy::Result<()> + Send + 'static,
) -> Result<()> {
    let request = GuestRequest::PutTar { directory: directory.to_owned(), placement: Placement::Merge };
    guest
        .call(request, move |call| {
            let output = std::io::BufWriter::with_capacity(MAX_DATA, &mut *call);
            let mut packer = Packer::new(output, Ownership::Root);
            add(&mut packer).map_err(from_copy)?;
            let (output, _) = packer.finish().map_err(from_copy)?;
            drop(output);
            call.end_input()?;
            call.finish()
        })
        .await
}

/// Says which step has failed.
fn failed(request: &Request<'_>, step: &Step, error: Error) -> Error {
    let own = match &error {
        Error::Guest(failure) => failure.message.clone(),
        Error::Refused(why) => why.clone(),
        _ => return error,
    };
    let place = match step.line {
        0 => step.shown.clone(),
        line => format!("line {line}: {}", step.shown),
    };
    let error = Error::Refused(format!("cannot build {}: {place}: {own}", request.name));
    match request.keep {
        true => error,
        false => {
            error.with_hint("the sandbox of the build is gone; with `--keep`, it stays after a failure.")
        }
    }
}

fn commit_options<'a>(plan: &Plan, request: &Request<'a>) -> Options<'a> {
    let Config { env, user, working_dir, entrypoint, cmd, exposed_ports, stop_signal, labels } =
        plan.config.clone();
    let mut labels: HashMap<String, String> = labels.into_iter().collect();
    let recipe = &request.recipe;
    let file = recipe.file.file_name().unwrap_or_default().to_string_lossy();
    labels.insert(RECIPE.to_owned(), format!("{file} {}", recipe.digest));
    Options::from([
        (commit::ENV, Variant::from(env)),
        (commit::USER, Variant::from(user)),
        (commit::WORKING_DIR, Variant::from(working_dir)),
        (commit::ENTRYPOINT, Variant::from(entrypoint)),
        (commit::CMD, Variant::from(cmd)),
        (commit::EXPOSED_PORTS, Variant::from(exposed_ports)),
        (commit::STOP_SIGNAL, Variant::from(stop_signal)),
        (commit::LABELS, Variant::from(labels)),
        (commit::FORCE, Variant::from(request.force)),
    ])
}

/// Returns the digest of the recipe that an image was built from.
pub fn digest_of(image: &Object) -> Option<String> {
    let image = image.json();
    let label = image["config"]["labels"][RECIPE].as_str()?;
    label.rsplit_once(' ').map(|(_, digest)| digest.to_owned())
}

/// Returns whether an error says that an image is missing.
pub fn is_missing(error: &Error) -> bool {
    matches!(error.name(), Some(ErrorName::NoSuchImage | ErrorName::NotPublished))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_label_of_an_image_has_the_digest_of_its_recipe() {
        let image = |label: &str| {
            let labels = HashMap::from([(RECIPE.to_owned(), label.to_owned())]);
            let config = HashMap::from([("labels".to_owned(), Variant::from(labels))]);
            let config = zbus::OwnedVariant::try_from(Variant::from(config)).unwrap();
            Object::new(HashMap::from([("Config".to_owned(), config)]))
        };
        assert_eq!(digest_of(&image("my tool.toml sha256:00")).as_deref(), Some("sha256:00"));
        assert_eq!(digest_of(&image("")), None);
        assert_eq!(digest_of(&Object::default()), None);
    }
}
