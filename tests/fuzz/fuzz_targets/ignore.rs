//! See `pleach_tests::fuzz::ignore`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pleach_tests::fuzz::ignore(data));
