//! See `fuzz/src/connect_frames.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::connect_frames(data));
