//! The checks that `doctor` shows. They use the same facts that decide whether a sandbox can be created and started.

use banger_domain::{
    architecture::Architecture,
    id::{Timestamp, Uid},
    name::Reference,
};
use banger_proto::causes::without_codes;

use super::{
    Engine, HOST_KERNEL, capability,
    library::host_kernel::{self, HostKernelReport},
    view::KernelView,
};
use crate::ports::{Check, Status};

const DEFAULT_KERNEL: &str = "default kernel";

impl Engine {
    /// Checks the host for this user. Changes nothing.
    pub async fn diagnose(&self, caller: Uid) -> Vec<Check> {
        self.checks(caller, caller).await
    }

    /// Returns the checks for a user, with the problems that another one sees.
    pub(super) async fn checks(&self, caller: Uid, seen_by: Uid) -> Vec<Check> {
        let ports = &self.shared.ports;
        let mut checks = ports.vmm.checks().await;
        checks.extend(ports.network.checks().await);
        for capability in capability::ALL {
            checks.extend(capability.checks(ports).await);
        }
        let settings = self.settings();
        if settings.templates {
            checks.extend(ports.templates.checks().await);
        }
        let image = self.default_image(caller);
        checks.push(match image {
            Ok(image) => {
                pass("default image", format!("{} is available ({})", image.name, image.facts.virtual_size))
            }
            Err(_) => Check {
                name: "default image",
                status: Status::Warn,
                message: format!("{} is missing", settings.default_image),
                hint: format!(
                    "run `banger image pull {0}`, or `banger image register --name {0} --rootfs FILE`",
                    settings.default_image
                ),
            },
        });
        checks.push(self.check_default_kernel(caller).await);
        checks.extend(self.preset_checks(seen_by));
        checks.extend(self.problem_checks(seen_by));
        // Adapters put errors of the system into sentences.
        checks.iter_mut().for_each(|check| check.message = without_codes(&check.message));
        checks
    }

    async fn check_default_kernel(&self, caller: Uid) -> Check {
        let name = &self.settings().default_kernel;
        let found = self.kernel_by(caller, &Reference::Name(name.clone()));
        let is_other = found.as_ref().is_ok_and(|kernel| !host_kernel::is_of_host(kernel));
        if name.as_str() == HOST_KERNEL && !is_other {
            return check_host_kernel(&self.report_host_kernel().await);
        }
        match found {
            Ok(kernel) => {
                pass(DEFAULT_KERNEL, format!("{} is available ({})", kernel.name, kernel.facts.release))
            }
            Err(_) => warn(
                DEFAULT_KERNEL,
                format!("{name} is missing"),
                format!("run `banger kernel import --name {name} --vmlinuz FILE --modules DIRECTORY`"),
            ),
        }
    }
}

/// Says which kernel of the host sandboxes boot, since when, and what is wrong with the installed one.
fn check_host_kernel(report: &HostKernelReport) -> Check {
    let HostKernelReport { imported, installed, is_fresh, failed } = report;
    let since = |kernel: &KernelView| format!("imported {}", at(kernel.created_at));
    let package = Architecture::HOST.differences().kernel_package;
    let hint = format!(
        "install the distribution's kernel package ({package}, linux-image-virtual, kernel-core), \
         or import another kernel with `banger kernel import --shared --name NAME --from DIRECTORY` and set \
         default_kernel_name in /etc/banger/config.toml"
    );
    match (imported, installed, failed) {
        (Some(kernel), Ok(_), None) if *is_fresh => {
            pass(DEFAULT_KERNEL, format!("the host's own {} ({})", kernel.facts.release, since(kernel)))
        }
        (Some(kernel), Ok(found), None) => pass(
            DEFAULT_KERNEL,
            format!(
                "the host's own {} ({}); the next sandbox that starts imports {}",
                kernel.facts.release,
                since(kernel),
                found.installed.release
            ),
        ),
        (Some(kernel), Ok(found), Some(why)) => warn(
            DEFAULT_KERNEL,
            format!(
                "sandboxes keep {} ({}), because {} cannot be imported: {why}",
                kernel.facts.release,
                since(kernel),
                found.installed.vmlinuz.display()
            ),
            hint,
        ),
        (Some(kernel), Err(why), _) => pass(
            DEFAULT_KERNEL,
            format!("the host's own {} ({}); {why}", kernel.facts.release, since(kernel)),
        ),
        (None, Ok(found), None) => pass(
            DEFAULT_KERNEL,
            format!(
                "the host's own {} ({}), which the first sandbox imports",
                found.installed.release,
                found.installed.vmlinuz.display()
            ),
        ),
        (None, Ok(found), Some(why)) => {
            warn(DEFAULT_KERNEL, format!("cannot import {}: {why}", found.installed.vmlinuz.display()), hint)
        }
        (None, Err(why), _) => warn(DEFAULT_KERNEL, why.clone(), hint),
    }
}

fn at(time: Timestamp) -> String {
    let micros = i64::try_from(time.0).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_microsecond(micros).unwrap_or_default();
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

fn warn(name: &'static str, message: String, hint: String) -> Check {
    Check { name, status: Status::Warn, message, hint }
}

fn pass(name: &'static str, message: String) -> Check {
    Check { name, status: Status::Pass, message, hint: String::new() }
}
