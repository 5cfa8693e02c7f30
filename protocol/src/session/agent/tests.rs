//! The robot's session, told what happens and asked what it does.

use super::*;
use crate::dsse::SigningKey;
use crate::message::{Later, Reject};
use crate::upload_policy::UploadMode;

struct Robot {
    session: AgentSession,
    now: Instant,
}

#[expect(clippy::disallowed_methods, reason = "an Instant can only be had from the clock; tests move it themselves")]
fn robot() -> Robot {
    let session = AgentSession::new("acme".parse().unwrap(), vec![hub_key().public()]);
    Robot { session, now: Instant::now() }
}

fn hub_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn episode(n: u64) -> EpisodeId {
    EpisodeId::of(&n.to_le_bytes())
}

impl Robot {
    fn tell(&mut self, event: AgentEvent) -> Vec<AgentOrder> {
        self.session.handle(event, self.now)
    }

    fn seal(&mut self, n: u64, class: UploadClass) -> Vec<AgentOrder> {
        self.tell(AgentEvent::Sealed { episode: episode(n), class, ordinal: n, bytes: 1000, manifest_bytes: 100 })
    }

    fn reply(&mut self, n: u64, reply: UploadReply) -> Vec<AgentOrder> {
        self.tell(AgentEvent::Replied { episode: episode(n), reply })
    }

    fn wait(&mut self, wait: Duration) -> Vec<AgentOrder> {
        self.now += wait;
        self.session.handle_timeout(self.now)
    }
}

fn offered(orders: &[AgentOrder]) -> Vec<EpisodeId> {
    orders
        .iter()
        .filter_map(|order| if let AgentOrder::Offer { episode, .. } = order { Some(*episode) } else { None })
        .collect()
}

fn durable(n: u64) -> UploadReply {
    UploadReply::Durable(Receipt::sign(&"acme".parse().unwrap(), episode(n), 1, &hub_key()))
}

#[test]
fn nothing_is_offered_before_the_hub_answers_then_urgent_and_old_episodes_first() {
    let mut robot = robot();
    assert!(robot.seal(3, UploadClass::Bulk).is_empty());
    assert!(robot.seal(5, UploadClass::Labelled).is_empty());
    assert!(robot.seal(4, UploadClass::Labelled).is_empty());
    let orders = robot.tell(AgentEvent::Connected);
    assert_eq!(offered(&orders), [episode(4), episode(5), episode(3)]);
}

#[test]
fn only_a_valid_receipt_frees_an_episode() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    let _orders = robot.seal(1, UploadClass::Bulk);
    let forged = Receipt::sign(&"acme".parse().unwrap(), episode(1), 1, &SigningKey::from_seed(&[9; 32]));
    assert_eq!(
        robot.reply(1, UploadReply::Durable(forged)),
        [AgentOrder::Close { episode: episode(1) }],
        "a receipt of a stranger"
    );
    assert_eq!(offered(&robot.wait(LATER_MAX)), [episode(1)]);
    let other = Receipt::sign(&"acme".parse().unwrap(), episode(2), 1, &hub_key());
    assert_eq!(
        robot.reply(1, UploadReply::Durable(other)),
        [AgentOrder::Close { episode: episode(1) }],
        "a receipt for another episode"
    );
    assert_eq!(offered(&robot.wait(LATER_MAX)), [episode(1)]);
    assert!(matches!(robot.reply(1, durable(1))[..], [AgentOrder::Free { .. }]));
    assert_eq!(robot.session.pending(), 0);
}

#[test]
fn a_reconnect_starts_again_at_the_offer() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    let _orders = robot.seal(1, UploadClass::Bulk);
    let want = Want { bitmap: vec![1], resume: Vec::new() };
    assert_eq!(robot.reply(1, UploadReply::Want(want.clone())), [AgentOrder::Send { episode: episode(1), want }]);
    assert!(robot.tell(AgentEvent::Disconnected).is_empty());
    assert!(robot.reply(1, durable(1)).is_empty(), "a reply of the old connection");
    assert_eq!(offered(&robot.tell(AgentEvent::Connected)), [episode(1)]);
}

#[test]
fn later_holds_back_every_offer_until_its_time() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    let _orders = robot.seal(1, UploadClass::Bulk);
    let later = UploadReply::Later(Later { retry_after_ms: 500 });
    assert_eq!(robot.reply(1, later), [AgentOrder::Close { episode: episode(1) }]);
    assert!(robot.seal(2, UploadClass::Labelled).is_empty());
    assert_eq!(robot.session.wake_at(robot.now), Some(robot.now + Duration::from_millis(500)));
    assert!(robot.wait(Duration::from_millis(499)).is_empty());
    assert_eq!(offered(&robot.wait(Duration::from_millis(1))), [episode(2), episode(1)]);
}

#[test]
fn uploads_in_flight_are_bounded_and_each_end_lets_the_next_begin() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    for n in 0..2 * UPLOADS_IN_FLIGHT_MAX as u64 {
        let _orders = robot.seal(n, UploadClass::Labelled);
    }
    assert_eq!(robot.session.under_way.open.len(), UPLOADS_IN_FLIGHT_MAX);
    assert_eq!(offered(&robot.reply(0, durable(0))), [episode(UPLOADS_IN_FLIGHT_MAX as u64)]);
}

#[test]
fn no_more_is_under_way_than_the_link_carries_soon() {
    const MIB: u64 = 1 << 20;
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    for n in 0..100 {
        let large = AgentEvent::Sealed {
            episode: episode(n),
            class: UploadClass::Labelled,
            ordinal: n,
            bytes: MIB,
            manifest_bytes: 100,
        };
        let _orders = robot.tell(large);
    }
    assert_eq!(robot.session.under_way.open.len(), UPLOADS_OPEN_MIN, "one is committed while the next is sent");
    let _orders = robot.tell(AgentEvent::Rate { bytes_per_sec: 4 * MIB });
    assert_eq!(robot.session.under_way.open.len(), 8);
    let _orders = robot.tell(AgentEvent::Rate { bytes_per_sec: 1 << 40 });
    let open = WINDOW_BYTES_MAX / MIB;
    assert_eq!(robot.session.under_way.open.len() as u64, open);
    for _ in 0..10 {
        let _orders = robot.tell(AgentEvent::Rate { bytes_per_sec: 0 });
    }
    for n in 0..open - 2 {
        assert!(robot.reply(n, durable(n)).iter().all(|order| matches!(order, AgentOrder::Free { .. })));
    }
    assert_eq!(offered(&robot.reply(open - 2, durable(open - 2))), [episode(open)], "the link is slow again");
}

#[test]
fn what_is_less_urgent_takes_no_room_from_what_is_more() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    let sealed =
        |n, class| AgentEvent::Sealed { episode: episode(n), class, ordinal: n, bytes: 1 << 30, manifest_bytes: 100 };
    for n in 0..4 {
        let _orders = robot.tell(sealed(n, UploadClass::Bulk));
    }
    assert_eq!(robot.session.under_way.open.len(), UPLOADS_OPEN_MIN);
    assert_eq!(offered(&robot.tell(sealed(10, UploadClass::Labelled))), [episode(10)]);
    assert_eq!(offered(&robot.tell(sealed(11, UploadClass::Urgent))), [episode(11)]);
}

#[test]
fn an_urgent_episode_that_the_hub_has_no_room_for_ends_a_long_bulk_upload() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    let long = |n| AgentEvent::Sealed {
        episode: episode(n),
        class: UploadClass::Bulk,
        ordinal: n,
        bytes: 1 << 30,
        manifest_bytes: 100,
    };
    let later = || UploadReply::Later(Later { retry_after_ms: 500 });
    let close = |n| AgentOrder::Close { episode: episode(n) };
    let _orders = robot.tell(long(1));
    let _orders = robot.seal(9, UploadClass::Urgent);
    assert_eq!(robot.reply(9, later()), [close(9)], "one alone leaves room");
    let _orders = robot.tell(AgentEvent::Withdrawn { episodes: [episode(9)].into() });
    let _orders = robot.wait(Duration::from_millis(500));
    let _orders = robot.tell(long(2));
    let _orders = robot.seal(10, UploadClass::Urgent);
    assert_eq!(robot.reply(10, later()), [close(10), close(2)]);
    assert_eq!(offered(&robot.wait(Duration::from_millis(500))), [episode(10)]);
    assert_eq!(robot.reply(1, later()), [close(1)], "bulk ends nothing");
}

#[test]
fn an_episode_that_cannot_be_read_holds_up_no_other() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    let _orders = robot.seal(1, UploadClass::Urgent);
    let _orders = robot.seal(2, UploadClass::Urgent);
    for n in [1, 2] {
        let close = [AgentOrder::Close { episode: episode(n) }];
        assert_eq!(robot.tell(AgentEvent::Unreadable { episode: episode(n) }), close);
    }
    assert_eq!(offered(&robot.seal(3, UploadClass::Bulk)), [episode(3)]);
    assert!(robot.seal(1, UploadClass::Urgent).is_empty(), "it rests");
    assert_eq!(robot.session.pending(), 3);
    let rested_at = robot.now + UNREADABLE_REST;
    assert_eq!(robot.session.wake_at(robot.now), Some(rested_at));
    assert!(robot.tell(AgentEvent::Withdrawn { episodes: [episode(2)].into() }).is_empty());
    assert_eq!(offered(&robot.wait(UNREADABLE_REST)), [episode(1)]);
    assert_eq!(robot.session.wake_at(robot.now), None);
}

#[test]
fn what_each_class_holds_is_what_is_open() {
    let mut robot = robot();
    let _orders = robot.tell(metadata_first());
    let _orders = robot.tell(AgentEvent::Connected);
    for n in 0..60 {
        let class = UploadClass::ALL[n as usize % 3];
        let _orders = robot.seal(n, class);
        let _orders = match n % 7 {
            0 => robot.reply(n, UploadReply::Noted),
            1 => robot.tell(AgentEvent::Wanted { episodes: vec![episode(n - 1)] }),
            2 => robot.tell(AgentEvent::Broken { episode: episode(n) }),
            3 => robot.tell(AgentEvent::Unreadable { episode: episode(n) }),
            4 => robot.tell(AgentEvent::Withdrawn { episodes: [episode(n)].into() }),
            5 => robot.tell(policy(n % 2 == 0, &[])),
            _ => robot.wait(Duration::from_secs(1)),
        };
        let mut held = [(0, 0); UploadClass::ALL.len()];
        for open in robot.session.under_way.open.values() {
            let (count, bytes) = &mut held[open.place.0 as usize];
            *count += 1;
            *bytes += open.bytes_held();
        }
        assert_eq!(robot.session.under_way.held, held, "after {n}");
    }
}

#[test]
fn descriptions_keep_to_the_window() {
    let mut robot = robot();
    let _orders = robot.tell(metadata_first());
    let _orders = robot.tell(AgentEvent::Connected);
    for n in 0..10 {
        let (class, manifest_bytes) = (UploadClass::Labelled, 1 << 18);
        let _orders =
            robot.tell(AgentEvent::Sealed { episode: episode(n), class, ordinal: n, bytes: 1 << 30, manifest_bytes });
    }
    assert_eq!(robot.session.under_way.open.len(), 4, "manifests of 256 KiB in a window of 1 MiB");
}

#[test]
fn an_episode_that_was_given_up_is_neither_offered_nor_freed() {
    let mut robot = robot();
    let _orders = robot.seal(1, UploadClass::Bulk);
    assert!(robot.tell(AgentEvent::Withdrawn { episodes: [episode(1)].into() }).is_empty());
    assert!(robot.tell(AgentEvent::Connected).is_empty());
    let _orders = robot.seal(2, UploadClass::Bulk);
    let close = [AgentOrder::Close { episode: episode(2) }];
    assert_eq!(robot.tell(AgentEvent::Withdrawn { episodes: [episode(2)].into() }), close);
    assert!(robot.reply(2, durable(2)).is_empty(), "its receipt comes too late");
    assert_eq!(robot.session.pending(), 0);
}

#[test]
fn failures_go_first_and_bulk_always_leaves_them_places() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    for n in 0..UPLOADS_IN_FLIGHT_MAX as u64 {
        let _orders = robot.seal(n, UploadClass::Bulk);
    }
    assert_eq!(robot.session.under_way.open.len(), UPLOADS_IN_FLIGHT_MAX - PLACES_KEPT);
    for n in 1000..1000 + PLACES_KEPT as u64 {
        let orders = robot.seal(n, UploadClass::Urgent);
        assert_eq!(orders, [AgentOrder::Offer { episode: episode(n), priority: PRIORITY_URGENT }]);
    }
    assert!(robot.seal(2000, UploadClass::Labelled).is_empty(), "now there is no place");
    assert_eq!(offered(&robot.reply(1000, durable(1000))), [episode(2000)]);
    assert!(robot.reply(2000, durable(2000)).iter().all(|order| !matches!(order, AgentOrder::Offer { .. })));
}

fn policy(metered: bool, windows: &[(u16, u16)]) -> AgentEvent {
    let windows = windows.iter().map(|&(from, to)| crate::upload_policy::Window::new(from, to).unwrap());
    AgentEvent::Policy(UploadPolicy { windows: windows.collect(), metered, ..UploadPolicy::default() })
}

#[test]
fn outside_its_windows_a_robot_offers_nothing_and_stops_what_is_under_way() {
    let mut robot = robot();
    let _orders = robot.tell(policy(false, &[(600, 660)]));
    let _orders = robot.tell(AgentEvent::TimeOfDay { secs: 599 * 60 });
    let _orders = robot.tell(AgentEvent::Connected);
    assert!(robot.seal(1, UploadClass::Urgent).is_empty(), "ten o'clock is a minute away");
    assert_eq!(robot.session.wake_at(robot.now), Some(robot.now + Duration::from_secs(60)));
    assert_eq!(offered(&robot.wait(Duration::from_secs(60))), [episode(1)]);
    assert_eq!(robot.session.wake_at(robot.now), Some(robot.now + Duration::from_secs(3600)));
    assert_eq!(robot.wait(Duration::from_secs(3600)), [AgentOrder::Close { episode: episode(1) }]);
    assert!(robot.reply(1, UploadReply::Later(Later { retry_after_ms: 1 })).is_empty());
    let orders = robot.tell(AgentEvent::TimeOfDay { secs: 600 * 60 });
    assert_eq!(offered(&orders), [episode(1)], "the clock was wrong, and is right now");
}

#[test]
fn a_closed_window_is_slept_through_although_a_wait_has_passed() {
    let mut robot = robot();
    let _orders = robot.tell(policy(false, &[(600, 660)]));
    let _orders = robot.tell(AgentEvent::TimeOfDay { secs: 600 * 60 });
    let _orders = robot.tell(AgentEvent::Connected);
    let _orders = robot.seal(1, UploadClass::Bulk);
    let _orders = robot.reply(1, UploadReply::Later(Later { retry_after_ms: 500 }));
    assert_eq!(robot.session.wake_at(robot.now), Some(robot.now + Duration::from_millis(500)));
    assert!(robot.wait(Duration::from_secs(3600)).is_empty());
    assert_eq!(robot.session.wake_at(robot.now), Some(robot.now + Duration::from_secs(23 * 3600)));
}

#[test]
fn over_a_metered_link_only_labelled_episodes_go() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    assert_eq!(offered(&robot.seal(1, UploadClass::Bulk)), [episode(1)]);
    assert_eq!(robot.tell(policy(true, &[])), [AgentOrder::Close { episode: episode(1) }]);
    assert_eq!(offered(&robot.seal(2, UploadClass::Labelled)), [episode(2)]);
    assert!(offered(&robot.reply(2, durable(2))).is_empty(), "bulk waits for a better link");
    assert_eq!(robot.session.pending(), 1);
    assert_eq!(offered(&robot.tell(policy(false, &[]))), [episode(1)]);
}

fn metadata_first() -> AgentEvent {
    AgentEvent::Policy(UploadPolicy { mode: UploadMode::MetadataFirst, ..UploadPolicy::default() })
}

fn described(orders: &[AgentOrder]) -> Vec<EpisodeId> {
    let of = |order: &AgentOrder| {
        if let AgentOrder::Describe { episode, .. } = order { Some(*episode) } else { None }
    };
    orders.iter().filter_map(of).collect()
}

#[test]
fn metadata_first_describes_and_keeps_until_somebody_asks() {
    let mut robot = robot();
    let _orders = robot.tell(metadata_first());
    let _orders = robot.tell(AgentEvent::Connected);
    assert_eq!(described(&robot.seal(1, UploadClass::Labelled)), [episode(1)]);
    assert!(robot.reply(1, UploadReply::Noted).is_empty(), "known is not durable: nothing is freed");
    assert_eq!((robot.session.pending(), robot.session.noted()), (1, 1));
    assert!(robot.tell(AgentEvent::Disconnected).is_empty());
    assert!(robot.tell(AgentEvent::Connected).is_empty(), "it is described once");
    let wanted = AgentEvent::Wanted { episodes: vec![episode(7), episode(1)] };
    assert_eq!(offered(&robot.tell(wanted)), [episode(1)]);
    // Asked for before it was sealed, or found in the spool.
    assert_eq!(offered(&robot.seal(7, UploadClass::Bulk)), [episode(7)]);
    assert!(matches!(robot.reply(1, durable(1))[..], [AgentOrder::Free { .. }]));
    assert_eq!(described(&robot.seal(8, UploadClass::Bulk)), [episode(8)]);
}

#[test]
fn what_is_asked_for_while_it_is_described_is_offered_then() {
    let mut robot = robot();
    let _orders = robot.tell(metadata_first());
    let _orders = robot.tell(AgentEvent::Connected);
    let _orders = robot.seal(1, UploadClass::Labelled);
    assert!(robot.tell(AgentEvent::Wanted { episodes: vec![episode(1)] }).is_empty());
    assert_eq!(robot.reply(1, UploadReply::Noted), [AgentOrder::Close { episode: episode(1) }]);
    assert_eq!(offered(&robot.wait(RETRY_AFTER)), [episode(1)]);
}

#[test]
fn a_description_that_is_answered_with_a_want_sends_nothing() {
    let mut robot = robot();
    let _orders = robot.tell(metadata_first());
    let _orders = robot.tell(AgentEvent::Connected);
    let _orders = robot.seal(1, UploadClass::Labelled);
    let want = UploadReply::Want(Want { bitmap: vec![1], resume: Vec::new() });
    assert_eq!(robot.reply(1, want), [AgentOrder::Close { episode: episode(1) }]);
}

#[test]
fn another_mode_offers_what_was_noted_and_what_is_given_up_is_not_sent() {
    let mut robot = robot();
    let _orders = robot.tell(metadata_first());
    let _orders = robot.tell(AgentEvent::Connected);
    for n in 1..=2 {
        let _orders = robot.seal(n, UploadClass::Labelled);
        let _orders = robot.reply(n, UploadReply::Noted);
    }
    assert!(robot.tell(AgentEvent::Withdrawn { episodes: [episode(1)].into() }).is_empty());
    assert!(robot.tell(AgentEvent::Wanted { episodes: vec![episode(1)] }).is_empty(), "it is gone");
    assert_eq!(offered(&robot.tell(policy(false, &[]))), [episode(2)]);
}

#[test]
fn a_rejected_episode_is_kept_aside() {
    let mut robot = robot();
    let _orders = robot.tell(AgentEvent::Connected);
    let _orders = robot.seal(1, UploadClass::Bulk);
    let reject = UploadReply::Reject(Reject { reason: RejectReason::Conflict });
    let expected = AgentOrder::Quarantine { episode: episode(1), reason: RejectReason::Conflict };
    assert_eq!(robot.reply(1, reject), [expected]);
    assert!(robot.wait(LATER_MAX).is_empty());
}
