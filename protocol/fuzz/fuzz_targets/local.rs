//! Frames on the local socket, as an agent reads them from a control program, and a client from an agent.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zunft_protocol::ids::ReleaseId;
use zunft_protocol::local::{
    Act, Action, Begin, Begun, End, Ended, ErrorBody, Event, Header, Progress, Sample, Step, answer_greeting,
    read_agent_greeting,
};

fuzz_target!(|bytes: &[u8]| {
    if let Some(greeting) = bytes.first_chunk() {
        let _version = (answer_greeting(*greeting), read_agent_greeting(*greeting));
    }
    if let Some(header) = bytes.first_chunk()
        && let Ok(header) = Header::decode(*header)
    {
        assert_eq!(&header.encode()[..], &bytes[..16]);
    }
    if let Ok(step) = Step::decode(bytes) {
        let mut again = Vec::new();
        step.encode(&mut again);
        assert_eq!(again, bytes);
    }
    if let Ok(sample) = Sample::decode(bytes) {
        let mut again = Vec::new();
        sample.encode(&mut again);
        assert_eq!(again, bytes);
    }
    if let Ok(act) = Act::decode(bytes) {
        let mut again = Vec::new();
        act.encode(&mut again);
        assert_eq!(again, bytes);
    }
    if let Ok(action) = Action::decode(bytes) {
        let mut again = Vec::new();
        action.encode(&mut again);
        assert_eq!(again, bytes);
    }
    let _progress = Progress::decode(bytes);
    if let Ok(begin) = serde_json::from_slice::<Begin>(bytes)
        && begin.embodiment.check().is_ok()
    {
        let _sizes = (begin.embodiment.id(), begin.embodiment.step_bytes());
    }
    let _asked = serde_json::from_slice::<End>(bytes);
    let _answers = (
        serde_json::from_slice::<Begun>(bytes),
        serde_json::from_slice::<Ended>(bytes),
        serde_json::from_slice::<Event>(bytes),
        serde_json::from_slice::<ErrorBody>(bytes),
    );
    let _release = str::from_utf8(bytes).map(str::parse::<ReleaseId>);
});
