//! The calls that pass descriptors.

/// How a call passes descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passing {
    /// It answers with one.
    Answer,
    /// Its arguments may refer to files, which the service reads.
    Read,
    /// Its argument is a file, which the service fills.
    Fill,
}

const CALLS: [(&str, Passing); 8] = [
    ("Export", Passing::Fill),
    ("ImportImage", Passing::Read),
    ("ImportKernel", Passing::Read),
    ("OpenAgent", Passing::Answer),
    ("OpenLog", Passing::Answer),
    ("OpenMetrics", Passing::Answer),
    ("OpenStream", Passing::Answer),
    // The credentials in its options.
    ("PullImage", Passing::Read),
];

impl Passing {
    /// Returns how a method passes descriptors, if it does.
    pub fn of(method: &str) -> Option<Self> {
        CALLS.iter().find(|(name, _)| *name == method).map(|(_, passing)| *passing)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const INTERFACES: [&str; 5] = [
        include_str!("../../../dbus/interfaces/dev.banger.Manager1.xml"),
        include_str!("../../../dbus/interfaces/dev.banger.Manager1.VM.xml"),
        include_str!("../../../dbus/interfaces/dev.banger.Manager1.Image.xml"),
        include_str!("../../../dbus/interfaces/dev.banger.Manager1.Kernel.xml"),
        include_str!("../../../dbus/interfaces/dev.banger.Manager1.Job.xml"),
    ];

    #[test]
    fn every_call_that_passes_a_descriptor_is_known() {
        let mut seen = 0;
        for xml in INTERFACES {
            for method in xml.split("<method name=\"").skip(1) {
                let (name, rest) = method.split_once('"').unwrap();
                let arguments = rest.split("</method>").next().unwrap();
                let passes = |direction: &str| {
                    let arguments = arguments.split("<arg ").skip(1);
                    let mut of = arguments.filter(|argument| argument.contains(direction));
                    of.any(|argument| {
                        let signature = argument.split("type=\"").nth(1).unwrap();
                        signature.split('"').next().unwrap().contains('h')
                    })
                };
                seen += 1;
                match (passes("direction=\"in\""), passes("direction=\"out\""), Passing::of(name)) {
                    (true, false, Some(Passing::Read | Passing::Fill)) => {}
                    (false, true, Some(Passing::Answer)) => {}
                    // Options may have any value.
                    (false, false, None | Some(Passing::Read)) => {}
                    wrong => panic!("{name}: {wrong:?}"),
                }
            }
        }
        assert!(seen > 40, "{seen}");
    }
}
