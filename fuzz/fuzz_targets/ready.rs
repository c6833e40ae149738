//! See `fuzz/src/ready.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::ready(data));
