//! Kernel images are refused, or become a file that VMMs boot, with a valid release.
#![no_main]

use banger_domain::architecture::Architecture;
use banger_image::kernel::extract::extract;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: { banger_fuzz::sow("kernel") },
    |input: &[u8]| {
        for architecture in Architecture::ALL {
            let Ok(kernel) = extract(input.to_vec(), architecture) else { continue };
            match architecture {
                Architecture::X86_64 => assert!(kernel.vmlinux.starts_with(b"\x7fELF")),
                Architecture::Aarch64 => assert_eq!(&kernel.vmlinux[0x38..0x3c], b"ARM\x64"),
            }
            let release = kernel.facts.release.as_str();
            assert!(!release.is_empty() && !release.contains(['/', '\0', '\n']) && release != "..");
        }
    }
);
