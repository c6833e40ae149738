//! See `fuzz/src/control_body.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::control_body(data));
