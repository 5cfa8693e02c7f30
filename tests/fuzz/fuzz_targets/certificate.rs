//! A robot's certificate, as the hub reads it: who is named can be written, and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../hub/src/identity.rs"]
mod identity;

fuzz_target!(|bytes: &[u8]| {
    let named = identity::robot_of_certificate(bytes).map(|certified| certified.identity);
    let written = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<identity::RobotIdentity>().ok());
    for robot in named.into_iter().chain(written) {
        assert_eq!(robot.to_string().parse(), Ok(robot), "a robot has one name");
    }
});
