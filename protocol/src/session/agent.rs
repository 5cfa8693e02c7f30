//! The robot's side: which episode is offered when, and when its copy may be freed.
//!
//! Pure. The shell opens a stream for each [`AgentOrder::Offer`], sends what is asked for and feeds back the
//! replies. The robot's copy is freed on a valid receipt and on nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::UploadReply;
use super::policy::{Rules, UploadPolicy};
use crate::TenantId;
use crate::dsse::PublicKey;
use crate::ids::EpisodeId;
use crate::limits::{UPLOAD_BYTES_HELD_MAX, UPLOADS_IN_FLIGHT_MAX, WANTED_PER_MESSAGE_MAX};
use crate::message::{PRIORITY_BULK, PRIORITY_LABELLED, PRIORITY_URGENT, Receipt, RejectReason, Want};

/// Longest wait that a hub's LATER can impose: beyond it, a confused hub would silence a robot.
const LATER_MAX: Duration = Duration::from_secs(300);

/// Shortest wait after a stream that broke without the connection breaking.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a link of unknown speed is given to do.
const WINDOW_BYTES_MIN: u64 = 1024 * 1024;

/// Most bytes under way: with a hub's commits of some tens of milliseconds they keep a link of 10 Gbit/s busy, and they
/// are less than a hub holds for one robot.
const WINDOW_BYTES_MAX: u64 = 48 * 1024 * 1024;

/// What is under way goes out within so many seconds, or waits in the spool instead: what was offered and is not
/// sent takes memory of the hub, and cannot be overtaken.
const WINDOW_SECS: u64 = 2;

/// Uploads that are open whatever the link can do: while one is committed, the next one is sent.
const UPLOADS_OPEN_MIN: usize = 2;

/// Places that bulk leaves for what is more urgent.
const PLACES_KEPT: usize = 4;

/// How urgent an episode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UploadClass {
    /// A failure, or a human intervened: there is most to learn from it.
    Urgent,
    /// Its outcome is known: learning waits for it.
    Labelled,
    /// Everything else.
    Bulk,
}

impl UploadClass {
    /// Priority of its stream.
    pub fn priority(self) -> i32 {
        match self {
            Self::Urgent => PRIORITY_URGENT,
            Self::Labelled => PRIORITY_LABELLED,
            Self::Bulk => PRIORITY_BULK,
        }
    }

    /// Uploads that may be open when one of this class begins: bulk leaves places for what is more urgent.
    fn in_flight_max(self) -> usize {
        match self {
            Self::Urgent | Self::Labelled => UPLOADS_IN_FLIGHT_MAX,
            Self::Bulk => UPLOADS_IN_FLIGHT_MAX - PLACES_KEPT,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentEvent {
    /// The hub answers.
    Connected,
    /// It does no longer; every stream is gone.
    Disconnected,
    /// An episode is sealed on disk and waits for upload.
    Sealed {
        /// Which.
        episode: EpisodeId,
        /// How urgent.
        class: UploadClass,
        /// The robot's count of recordings, for the order inside a class.
        ordinal: u64,
        /// Bytes of its chunks.
        bytes: u64,
    },
    /// What the link carried of late; told again every now and then.
    Rate {
        /// Bytes a second.
        bytes_per_sec: u64,
    },
    /// The hub answered on an upload stream.
    Replied {
        /// Which episode.
        episode: EpisodeId,
        /// What.
        reply: UploadReply,
    },
    /// Episodes that are not to be offered any more: given up for want of room, or kept on site from now on.
    Withdrawn {
        /// Which.
        episodes: BTreeSet<EpisodeId>,
    },
    /// An upload stream broke, or its episode could not be read.
    Broken {
        /// Which episode.
        episode: EpisodeId,
    },
    /// The hub's operator wants all of these episodes.
    Wanted {
        /// Which.
        episodes: Vec<EpisodeId>,
    },
    /// What the operator allows, from now on.
    Policy(UploadPolicy),
    /// The time of day, where it is known; told again whenever clocks may have moved.
    TimeOfDay {
        /// Seconds since midnight, in the time that the policy's windows mean.
        secs: u32,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentOrder {
    /// Open a stream and offer the manifest.
    Offer {
        /// Which episode.
        episode: EpisodeId,
        /// Priority of the stream.
        priority: i32,
    },
    /// Open a stream and send the manifest, for the hub to know of the episode; no chunk of it.
    Describe {
        /// Which episode.
        episode: EpisodeId,
        /// Priority of the stream.
        priority: i32,
    },
    /// Send the wanted chunks on the episode's stream.
    Send {
        /// Which episode.
        episode: EpisodeId,
        /// Which chunks.
        want: Want,
    },
    /// Close the episode's stream; it is offered again later.
    Close {
        /// Which episode.
        episode: EpisodeId,
    },
    /// Store the receipt, then free the episode's copy.
    Free {
        /// Which episode.
        episode: EpisodeId,
        /// The hub's word.
        receipt: Receipt,
    },
    /// Keep the episode aside and tell the operator: the hub will never take it.
    Quarantine {
        /// Which episode.
        episode: EpisodeId,
        /// The hub's reason.
        reason: RejectReason,
    },
}

/// Where an episode stands among those that wait: urgent ones first, then the oldest.
type Place = (UploadClass, u64, EpisodeId);

/// An upload under way.
#[derive(Debug, Clone, Copy)]
struct Open {
    place: Place,
    bytes: u64,
    /// Whether chunks are on offer, too.
    whole: bool,
}

impl Open {
    /// What it may have under way at a time.
    fn bytes_held(&self) -> u64 {
        if self.whole { self.bytes.min(UPLOAD_BYTES_HELD_MAX) } else { 0 }
    }
}

/// The robot's upload decisions.
#[derive(Debug)]
pub struct AgentSession {
    tenant: TenantId,
    receipt_keys: Vec<PublicKey>,
    connected: bool,
    not_before: Option<Instant>,
    /// With the bytes of their chunks.
    waiting: BTreeMap<Place, u64>,
    open: BTreeMap<EpisodeId, Open>,
    /// What the hub knows of and nobody asked for: kept until someone does.
    noted: BTreeMap<EpisodeId, (Place, u64)>,
    /// What somebody asked for.
    wanted: BTreeSet<EpisodeId>,
    /// Bytes that may be under way.
    window_bytes: u64,
    rules: Rules,
    orders: Vec<AgentOrder>,
}

impl AgentSession {
    /// A session of `tenant` that trusts receipts of `receipt_keys` (the root's assigners).
    pub fn new(tenant: TenantId, receipt_keys: Vec<PublicKey>) -> Self {
        Self {
            tenant,
            receipt_keys,
            connected: false,
            not_before: None,
            waiting: BTreeMap::new(),
            open: BTreeMap::new(),
            noted: BTreeMap::new(),
            wanted: BTreeSet::new(),
            window_bytes: WINDOW_BYTES_MIN,
            rules: Rules::default(),
            orders: Vec::new(),
        }
    }

    /// Trusts receipts of other keys from now on, after the root has changed.
    pub fn trust(&mut self, receipt_keys: Vec<PublicKey>) {
        self.receipt_keys = receipt_keys;
    }

    /// Episodes that are not durable yet.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.open.len() + self.noted.len()
    }

    /// Of them, those that the hub knows of and nobody asked for.
    pub fn noted(&self) -> usize {
        self.noted.len()
    }

    /// Takes an event and returns what to do, in order.
    #[must_use]
    pub fn handle(&mut self, event: AgentEvent, now: Instant) -> Vec<AgentOrder> {
        match event {
            AgentEvent::Connected => self.connected = true,
            AgentEvent::Disconnected => {
                self.connected = false;
                let open = std::mem::take(&mut self.open).into_values();
                self.waiting.extend(open.map(|Open { place, bytes, .. }| (place, bytes)));
                self.window_bytes = WINDOW_BYTES_MIN;
            }
            AgentEvent::Sealed { episode, class, ordinal, bytes } => {
                if !self.open.contains_key(&episode) && !self.noted.contains_key(&episode) {
                    self.waiting.insert((class, ordinal, episode), bytes);
                }
            }
            AgentEvent::Rate { bytes_per_sec } => {
                // A pause says nothing about the link: the window shrinks by and by.
                let carried = bytes_per_sec.saturating_mul(WINDOW_SECS);
                self.window_bytes = carried.max(self.window_bytes / 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
            }
            AgentEvent::Replied { episode, reply } => self.replied(episode, reply, now),
            AgentEvent::Withdrawn { episodes } => {
                self.waiting.retain(|(.., waiting), _| !episodes.contains(waiting));
                for episode in episodes {
                    self.wanted.remove(&episode);
                    self.noted.remove(&episode);
                    if self.open.remove(&episode).is_some() {
                        self.orders.push(AgentOrder::Close { episode });
                    }
                }
            }
            AgentEvent::Broken { episode } => self.put_back(episode, now + RETRY_AFTER),
            AgentEvent::Wanted { episodes } => self.want(episodes),
            AgentEvent::Policy(policy) => {
                self.rules.set_policy(policy);
                if !self.rules.describes() {
                    self.waiting.extend(std::mem::take(&mut self.noted).into_values());
                }
            }
            AgentEvent::TimeOfDay { secs } => self.rules.set_time(secs, now),
        }
        self.proceed(now);
        std::mem::take(&mut self.orders)
    }

    /// Takes the time alone: call it at [`AgentSession::wake_at`].
    #[must_use]
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<AgentOrder> {
        self.proceed(now);
        std::mem::take(&mut self.orders)
    }

    /// Whether the operator allows uploads now.
    pub fn is_open(&self, now: Instant) -> bool {
        self.rules.open(now)
    }

    /// When the session wants to be called though nothing happens.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let offer_at = self.next_place().filter(|_| self.rules.open(now)).and(self.not_before);
        let edge_at = self.rules.changes_at(now);
        if self.connected { offer_at.into_iter().chain(edge_at).min() } else { None }
    }

    /// The episode to offer next, if there is room for it.
    fn next_place(&self) -> Option<Place> {
        let (&place, &bytes) = self.waiting.first_key_value()?;
        let (class, _, episode) = place;
        if !self.rules.sends(class) || self.open.len() >= class.in_flight_max() {
            return None;
        }
        // What is less urgent is overtaken, so it takes no room.
        let ahead = self.open.values().filter(|open| open.place.0 <= class);
        let (count, held) = ahead.fold((0, 0), |(count, held), open| (count + 1, held + open.bytes_held()));
        let next = Open { place, bytes, whole: self.whole(episode) };
        (count < UPLOADS_OPEN_MIN || held + next.bytes_held() <= self.window_bytes).then_some(place)
    }

    /// Whether all of an episode is to be sent, and not its manifest alone.
    fn whole(&self, episode: EpisodeId) -> bool {
        !self.rules.describes() || self.wanted.contains(&episode)
    }

    fn want(&mut self, episodes: Vec<EpisodeId>) {
        for episode in episodes {
            // What this robot does not hold yet, it may find in its spool; a hub asks again on every connection.
            if self.wanted.len() < WANTED_PER_MESSAGE_MAX {
                self.wanted.insert(episode);
                self.waiting.extend(self.noted.remove(&episode));
            }
        }
    }

    /// The hub knows of an episode. That frees nothing.
    fn noted_by_hub(&mut self, episode: EpisodeId, now: Instant) {
        let Some(&Open { place, bytes, whole }) = self.open.get(&episode) else { return };
        if whole || self.whole(episode) {
            // No answer to an offer, or asked for meanwhile.
            self.put_back(episode, now + RETRY_AFTER);
        } else {
            self.open.remove(&episode);
            self.noted.insert(episode, (place, bytes));
        }
    }

    fn replied(&mut self, episode: EpisodeId, reply: UploadReply, now: Instant) {
        // A reply on a stream that was given up says nothing about the offer that followed.
        if !self.open.contains_key(&episode) {
            return;
        }
        match reply {
            UploadReply::Noted => self.noted_by_hub(episode, now),
            UploadReply::Want(_) if !self.open[&episode].whole => self.put_back(episode, now + LATER_MAX),
            UploadReply::Want(want) => self.orders.push(AgentOrder::Send { episode, want }),
            UploadReply::Later(later) => {
                let wait = Duration::from_millis(u64::from(later.retry_after_ms)).min(LATER_MAX);
                self.put_back(episode, now + wait);
            }
            UploadReply::Reject(reject) => {
                self.wanted.remove(&episode);
                self.open.remove(&episode);
                self.orders.push(AgentOrder::Quarantine { episode, reason: reject.reason });
            }
            UploadReply::Durable(receipt) => {
                if receipt.episode == episode && receipt.verify(&self.tenant, &self.receipt_keys) {
                    self.wanted.remove(&episode);
                    self.open.remove(&episode);
                    self.orders.push(AgentOrder::Free { episode, receipt });
                } else {
                    self.put_back(episode, now + LATER_MAX);
                }
            }
        }
    }

    fn put_back(&mut self, episode: EpisodeId, not_before: Instant) {
        if let Some(Open { place, bytes, .. }) = self.open.remove(&episode) {
            self.waiting.insert(place, bytes);
            self.not_before = Some(self.not_before.map_or(not_before, |other| other.max(not_before)));
            self.orders.push(AgentOrder::Close { episode });
        }
    }

    /// Does what the time and the policy allow.
    fn proceed(&mut self, now: Instant) {
        if self.rules.open(now) {
            self.close_unwanted(|rules, class| rules.sends(class));
            self.offer_next(now);
        } else {
            self.close_unwanted(|_, _| false);
        }
    }

    /// Gives up the uploads that are not to go on; the hub keeps what it has of them.
    fn close_unwanted(&mut self, wanted: impl Fn(&Rules, UploadClass) -> bool) {
        let rules = &self.rules;
        let closed: Vec<Open> =
            self.open.extract_if(.., |_, open| !wanted(rules, open.place.0)).map(|(_, open)| open).collect();
        for Open { place, bytes, .. } in closed {
            let (_, _, episode) = place;
            self.waiting.insert(place, bytes);
            self.orders.push(AgentOrder::Close { episode });
        }
    }

    fn offer_next(&mut self, now: Instant) {
        if !self.connected || self.not_before.is_some_and(|not_before| now < not_before) {
            return;
        }
        self.not_before = None;
        while let Some(place) = self.next_place() {
            let Some(bytes) = self.waiting.remove(&place) else { return };
            let (class, _, episode) = place;
            let (whole, priority) = (self.whole(episode), class.priority());
            self.open.insert(episode, Open { place, bytes, whole });
            self.orders.push(if whole {
                AgentOrder::Offer { episode, priority }
            } else {
                AgentOrder::Describe { episode, priority }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsse::SigningKey;
    use crate::message::{Later, Reject};
    use crate::upload_policy::UploadMode;

    struct Robot {
        session: AgentSession,
        now: Instant,
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can only be had from the clock; tests move it themselves"
    )]
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
            self.tell(AgentEvent::Sealed { episode: episode(n), class, ordinal: n, bytes: 1000 })
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
        assert_eq!(robot.session.open.len(), UPLOADS_IN_FLIGHT_MAX);
        assert_eq!(offered(&robot.reply(0, durable(0))), [episode(UPLOADS_IN_FLIGHT_MAX as u64)]);
    }

    #[test]
    fn no_more_is_under_way_than_the_link_carries_soon() {
        const MIB: u64 = 1 << 20;
        let mut robot = robot();
        let _orders = robot.tell(AgentEvent::Connected);
        for n in 0..100 {
            let large =
                AgentEvent::Sealed { episode: episode(n), class: UploadClass::Labelled, ordinal: n, bytes: MIB };
            let _orders = robot.tell(large);
        }
        assert_eq!(robot.session.open.len(), UPLOADS_OPEN_MIN, "one is committed while the next is sent");
        let _orders = robot.tell(AgentEvent::Rate { bytes_per_sec: 4 * MIB });
        assert_eq!(robot.session.open.len(), 8);
        let _orders = robot.tell(AgentEvent::Rate { bytes_per_sec: 1 << 40 });
        let open = WINDOW_BYTES_MAX / MIB;
        assert_eq!(robot.session.open.len() as u64, open);
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
        let sealed = |n, class| AgentEvent::Sealed { episode: episode(n), class, ordinal: n, bytes: 1 << 30 };
        for n in 0..4 {
            let _orders = robot.tell(sealed(n, UploadClass::Bulk));
        }
        assert_eq!(robot.session.open.len(), UPLOADS_OPEN_MIN);
        assert_eq!(offered(&robot.tell(sealed(10, UploadClass::Labelled))), [episode(10)]);
        assert_eq!(offered(&robot.tell(sealed(11, UploadClass::Urgent))), [episode(11)]);
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
        assert_eq!(robot.session.open.len(), UPLOADS_IN_FLIGHT_MAX - PLACES_KEPT);
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
}
