//! See `fuzz/src/ssh_config.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::ssh_config(data));
