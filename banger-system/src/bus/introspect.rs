//! The interfaces as introspection XML: methods as zbus writes them, properties and signals from the tables.

use std::{fmt::Write, sync::Weak};

use banger_domain::id::{ImageId, JobId, KernelId, VmId};
use zbus::object_server::Interface;

use super::{
    export::{Change, Kind},
    image::ImageKind,
    job::JobKind,
    kernel::KernelKind,
    manager::ManagerKind,
    vm::VmKind,
};

const EMITS_CHANGED: &str = "org.freedesktop.DBus.Property.EmitsChangedSignal";

/// Adds the signals and properties of a kind to the XML of its methods.
pub fn with_properties<K: Kind>(methods: &str, level: usize) -> String {
    const END: &str = "</interface>";
    let (before, after) = methods.rsplit_once(END).unwrap_or((methods, ""));
    let mut text = before.trim_end().to_owned();
    text.push('\n');
    let inner = " ".repeat(level + 2);
    for line in K::SIGNALS.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        let _ = writeln!(text, "{inner}{line}");
    }
    for property in K::properties() {
        let (name, signature) = (property.name, property.signature);
        let open = format!("{inner}<property name=\"{name}\" type=\"{signature}\" access=\"read\"");
        let _ = match property.change {
            Change::Signaled => writeln!(text, "{open}/>"),
            Change::Never => annotated(&mut text, &open, "const"),
            Change::Silent => annotated(&mut text, &open, "false"),
        };
    }
    let _ = write!(text, "{}{END}{after}", " ".repeat(level));
    text
}

fn annotated(text: &mut String, open: &str, value: &str) -> std::fmt::Result {
    writeln!(text, "{open}><annotation name=\"{EMITS_CHANGED}\" value=\"{value}\"/></property>")
}

/// Returns all interfaces with their XML, as in `dbus/interfaces`.
pub fn interfaces() -> Vec<(&'static str, String)> {
    vec![
        xml(&ManagerKind),
        xml(&VmKind(VmId::from_bits(0))),
        xml(&ImageKind(ImageId::from_bits(0))),
        xml(&KernelKind(KernelId::from_bits(0))),
        xml(&JobKind(JobId::from_bits(0))),
    ]
}

fn xml<K: Kind>(kind: &K) -> (&'static str, String) {
    let mut methods = String::new();
    // The description of methods needs no running service.
    kind.methods(Weak::new()).introspect_to_writer(&mut methods, 2);
    (K::INTERFACE, with_properties::<K>(&methods, 2))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;

    /// Set `BANGER_BLESS` to write the files again.
    #[test]
    fn the_installed_interfaces_are_those_of_the_code() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dbus/interfaces");
        for (name, xml) in interfaces() {
            let text = format!(
                "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
                 \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n{xml}</node>\n"
            );
            let path = directory.join(format!("{name}.xml"));
            if std::env::var_os("BANGER_BLESS").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            let golden = std::fs::read_to_string(&path).unwrap();
            assert_eq!(golden, text, "{} is not what the code says", path.display());
        }
    }
}
