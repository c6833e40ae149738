//! See `fuzz/src/envelope.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::envelope(data));
