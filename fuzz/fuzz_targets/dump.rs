#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| immich_backup_fuzz::entries::dump(data));
