//! See `fuzz/src/known_hosts.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| paperclip_bridge_fuzz::known_hosts(data));
