//! See `fuzz/src/envelope_signed.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::envelope_signed(data));
