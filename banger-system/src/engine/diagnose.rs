//! The checks that `doctor` shows. They use the same facts that decide whether a sandbox can be created and started.

use banger_domain::{id::Uid, name::Reference};
use banger_proto::causes::without_codes;

use super::{Engine, capability};
use crate::ports::{Check, Status};

impl Engine {
    /// Checks the host for this user. Changes nothing.
    pub async fn diagnose(&self, caller: Uid) -> Vec<Check> {
        let ports = &self.shared.ports;
        let mut checks = ports.vmm.checks().await;
        checks.extend(ports.network.checks().await);
        for capability in capability::ALL {
            checks.extend(capability.checks(ports).await);
        }
        let settings = self.settings();
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
        let kernel = self.kernel_by(caller, &Reference::Name(settings.default_kernel.clone()));
        checks.push(match kernel {
            Ok(kernel) => {
                pass("default kernel", format!("{} is available ({})", kernel.name, kernel.facts.release))
            }
            Err(_) => Check {
                name: "default kernel",
                status: Status::Warn,
                message: format!("{} is missing", settings.default_kernel),
                hint: format!(
                    "run `banger kernel import --name {} --vmlinuz FILE --modules DIRECTORY`",
                    settings.default_kernel
                ),
            },
        });
        checks.extend(self.problem_checks(caller));
        // Adapters put errors of the system into sentences.
        checks.iter_mut().for_each(|check| check.message = without_codes(&check.message));
        checks
    }
}

fn pass(name: &'static str, message: String) -> Check {
    Check { name, status: Status::Pass, message, hint: String::new() }
}
