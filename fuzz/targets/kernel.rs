//! Kernel images are refused, or become an ELF file with a valid release.
#![no_main]

use banger_image::kernel::extract::extract;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: { banger_fuzz::sow("kernel") },
    |input: &[u8]| {
        let Ok(kernel) = extract(input.to_vec()) else { return };
        assert!(kernel.vmlinux.starts_with(b"\x7fELF"));
        let release = kernel.facts.release.as_str();
        assert!(!release.is_empty() && !release.contains(['/', '\0', '\n']) && release != "..");
    }
);
