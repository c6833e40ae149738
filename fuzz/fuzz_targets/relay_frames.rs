//! See `fuzz/src/relay_frames.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::relay_frames(data));
