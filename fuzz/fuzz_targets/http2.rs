//! See `fuzz/src/http2/mod.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::http2(data));
