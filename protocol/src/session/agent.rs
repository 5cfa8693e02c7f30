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
use crate::message::{PRIORITY_BULK, PRIORITY_LABELLED, PRIORITY_URGENT, Receipt, ReceiptVerifier, RejectReason, Want};

/// Longest wait that a hub's LATER can impose: beyond it, a confused hub would silence a robot.
const LATER_MAX: Duration = Duration::from_secs(300);

/// How long an episode that could not be read is left alone.
const UNREADABLE_REST: Duration = Duration::from_secs(60);

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
    const ALL: [Self; 3] = [Self::Urgent, Self::Labelled, Self::Bulk];

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
        /// Bytes of its manifest.
        manifest_bytes: u64,
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
    /// An upload stream broke.
    Broken {
        /// Which episode.
        episode: EpisodeId,
    },
    /// An episode could not be read from the spool: it rests, and holds up no other.
    Unreadable {
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

/// What an episode takes on its way.
#[derive(Debug, Clone, Copy)]
struct Size {
    chunk_bytes: u64,
    manifest_bytes: u64,
}

/// An upload under way.
#[derive(Debug, Clone, Copy)]
struct Open {
    place: Place,
    size: Size,
    /// Whether chunks are on offer, too.
    whole: bool,
}

impl Open {
    /// What it may have under way at a time.
    fn bytes_held(&self) -> u64 {
        if self.whole { self.size.chunk_bytes.min(UPLOAD_BYTES_HELD_MAX) } else { self.size.manifest_bytes }
    }
}

/// The uploads under way, and what those of each class hold.
#[derive(Debug, Default)]
struct UnderWay {
    open: BTreeMap<EpisodeId, Open>,
    /// Number and bytes, by class.
    held: [(usize, u64); UploadClass::ALL.len()],
}

impl UnderWay {
    fn insert(&mut self, episode: EpisodeId, open: Open) {
        let (count, bytes) = &mut self.held[open.place.0 as usize];
        *count += 1;
        *bytes += open.bytes_held();
        self.open.insert(episode, open);
    }

    fn remove(&mut self, episode: EpisodeId) -> Option<Open> {
        let open = self.open.remove(&episode)?;
        let (count, bytes) = &mut self.held[open.place.0 as usize];
        *count -= 1;
        *bytes -= open.bytes_held();
        Some(open)
    }

    /// Number and bytes of what is at least as urgent as `class`.
    fn ahead_of(&self, class: UploadClass) -> (usize, u64) {
        let ahead = &self.held[..=class as usize];
        ahead.iter().fold((0, 0), |(counts, held), &(count, bytes)| (counts + count, held + bytes))
    }

    fn least_urgent(&self) -> Option<UploadClass> {
        UploadClass::ALL.into_iter().rev().find(|&class| self.held[class as usize].0 > 0)
    }

    /// The youngest of the least urgent uploads, if they are less urgent than `class`.
    fn overtaken_by(&self, class: UploadClass) -> Option<EpisodeId> {
        let last = self.open.values().max_by_key(|open| open.place)?;
        (last.place.0 > class).then_some(last.place.2)
    }
}

/// The robot's upload decisions.
#[derive(Debug)]
pub struct AgentSession {
    receipts: ReceiptVerifier,
    connected: bool,
    not_before: Option<Instant>,
    waiting: BTreeMap<Place, Size>,
    /// What could not be read of late, and until when it is left alone.
    resting: BTreeMap<EpisodeId, (Place, Size, Instant)>,
    under_way: UnderWay,
    /// What the hub knows of and nobody asked for: kept until someone does.
    noted: BTreeMap<EpisodeId, (Place, Size)>,
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
            receipts: ReceiptVerifier::new(tenant, receipt_keys),
            connected: false,
            not_before: None,
            waiting: BTreeMap::new(),
            resting: BTreeMap::new(),
            under_way: UnderWay::default(),
            noted: BTreeMap::new(),
            wanted: BTreeSet::new(),
            window_bytes: WINDOW_BYTES_MIN,
            rules: Rules::default(),
            orders: Vec::new(),
        }
    }

    /// Trusts receipts of other keys from now on, after the root has changed.
    pub fn trust(&mut self, receipt_keys: Vec<PublicKey>) {
        self.receipts.trust(receipt_keys);
    }

    /// Episodes that are not durable yet.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.resting.len() + self.under_way.open.len() + self.noted.len()
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
                let open = std::mem::take(&mut self.under_way).open.into_values();
                self.waiting.extend(open.map(|Open { place, size, .. }| (place, size)));
                self.window_bytes = WINDOW_BYTES_MIN;
            }
            AgentEvent::Sealed { episode, class, ordinal, bytes, manifest_bytes } => {
                let known = self.under_way.open.contains_key(&episode)
                    || self.noted.contains_key(&episode)
                    || self.resting.contains_key(&episode);
                if !known {
                    self.waiting.insert((class, ordinal, episode), Size { chunk_bytes: bytes, manifest_bytes });
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
                    self.resting.remove(&episode);
                    if self.under_way.remove(episode).is_some() {
                        self.orders.push(AgentOrder::Close { episode });
                    }
                }
            }
            AgentEvent::Broken { episode } => self.put_back(episode, now + RETRY_AFTER),
            AgentEvent::Unreadable { episode } => {
                if let Some(Open { place, size, .. }) = self.under_way.remove(episode) {
                    self.resting.insert(episode, (place, size, now + UNREADABLE_REST));
                    self.orders.push(AgentOrder::Close { episode });
                }
            }
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
        let rested_at = self.resting.values().map(|&(.., until)| until).min();
        if self.connected { offer_at.into_iter().chain(edge_at).chain(rested_at).min() } else { None }
    }

    /// The episode to offer next, if there is room for it.
    fn next_place(&self) -> Option<Place> {
        let (&place, &size) = self.waiting.first_key_value()?;
        let (class, _, episode) = place;
        if !self.rules.sends(class) || self.under_way.open.len() >= class.in_flight_max() {
            return None;
        }
        // What is less urgent is overtaken, so it takes no room.
        let (count, held) = self.under_way.ahead_of(class);
        let next = Open { place, size, whole: self.whole(episode) };
        (count < UPLOADS_OPEN_MIN || held + next.bytes_held() <= self.window_bytes).then_some(place)
    }

    /// Whether all of an episode is to be sent, and not its manifest alone.
    fn whole(&self, episode: EpisodeId) -> bool {
        !self.rules.describes() || self.wanted.contains(&episode)
    }

    fn want(&mut self, episodes: Vec<EpisodeId>) {
        for episode in episodes {
            // What this robot does not hold yet, it may find in its spool; a hub asks again on every connection.
            if self.wanted.len() < WANTED_PER_MESSAGE_MAX || self.noted.contains_key(&episode) {
                self.wanted.insert(episode);
                self.waiting.extend(self.noted.remove(&episode));
            }
        }
    }

    /// The hub knows of an episode. That frees nothing.
    fn noted_by_hub(&mut self, episode: EpisodeId, now: Instant) {
        let Some(&Open { place, size, whole }) = self.under_way.open.get(&episode) else { return };
        if whole || self.whole(episode) {
            // No answer to an offer, or asked for meanwhile.
            self.put_back(episode, now + RETRY_AFTER);
        } else {
            self.under_way.remove(episode);
            self.noted.insert(episode, (place, size));
        }
    }

    fn replied(&mut self, episode: EpisodeId, reply: UploadReply, now: Instant) {
        // A reply on a stream that was given up says nothing about the offer that followed.
        let Some(&Open { place: (class, ..), whole, .. }) = self.under_way.open.get(&episode) else { return };
        match reply {
            UploadReply::Noted => self.noted_by_hub(episode, now),
            UploadReply::Want(_) if !whole => self.put_back(episode, now + LATER_MAX),
            UploadReply::Want(want) => self.orders.push(AgentOrder::Send { episode, want }),
            UploadReply::Later(later) => {
                let wait = Duration::from_millis(u64::from(later.retry_after_ms)).min(LATER_MAX);
                self.put_back(episode, now + wait);
                self.make_room_at_the_hub(class, now + wait);
            }
            UploadReply::Reject(reject) => {
                self.wanted.remove(&episode);
                self.under_way.remove(episode);
                self.orders.push(AgentOrder::Quarantine { episode, reason: reject.reason });
            }
            UploadReply::Durable(receipt) => {
                if receipt.episode == episode && self.receipts.verify(&receipt) {
                    self.wanted.remove(&episode);
                    self.under_way.remove(episode);
                    self.orders.push(AgentOrder::Free { episode, receipt });
                } else {
                    self.put_back(episode, now + LATER_MAX);
                }
            }
        }
    }

    fn put_back(&mut self, episode: EpisodeId, not_before: Instant) {
        if let Some(Open { place, size, .. }) = self.under_way.remove(episode) {
            self.waiting.insert(place, size);
            self.not_before = Some(self.not_before.map_or(not_before, |other| other.max(not_before)));
            self.orders.push(AgentOrder::Close { episode });
        }
    }

    /// A hub that has no room for what is urgent may have given it to this robot's long bulk uploads: one of them ends
    /// here. What it has set down of that stays.
    fn make_room_at_the_hub(&mut self, class: UploadClass, not_before: Instant) {
        let behind = &self.under_way.held[class as usize + 1..];
        if behind.iter().map(|(_, bytes)| bytes).sum::<u64>() < WINDOW_BYTES_MAX {
            return;
        }
        if let Some(overtaken) = self.under_way.overtaken_by(class) {
            self.put_back(overtaken, not_before);
        }
    }

    /// Does what the time and the policy allow.
    fn proceed(&mut self, now: Instant) {
        let rested = self.resting.extract_if(.., |_, &mut (.., until)| until <= now);
        self.waiting.extend(rested.map(|(_, (place, size, _))| (place, size)));
        let open = self.rules.open(now);
        self.close_unwanted(open);
        if open {
            self.offer_next(now);
        }
    }

    /// Gives up the uploads that are not to go on; the hub keeps what it has of them.
    fn close_unwanted(&mut self, open: bool) {
        let unwanted = |class: UploadClass| !open || !self.rules.sends(class);
        // Rules that let the least urgent one go on let all go on.
        if !self.under_way.least_urgent().is_some_and(unwanted) {
            return;
        }
        let under_way = self.under_way.open.values();
        let closed: Vec<EpisodeId> = under_way.filter(|open| unwanted(open.place.0)).map(|open| open.place.2).collect();
        for episode in closed {
            if let Some(Open { place, size, .. }) = self.under_way.remove(episode) {
                self.waiting.insert(place, size);
                self.orders.push(AgentOrder::Close { episode });
            }
        }
    }

    fn offer_next(&mut self, now: Instant) {
        if !self.connected || self.not_before.is_some_and(|not_before| now < not_before) {
            return;
        }
        self.not_before = None;
        while let Some(place) = self.next_place() {
            let Some(size) = self.waiting.remove(&place) else { return };
            let (class, _, episode) = place;
            let (whole, priority) = (self.whole(episode), class.priority());
            self.under_way.insert(episode, Open { place, size, whole });
            self.orders.push(if whole {
                AgentOrder::Offer { episode, priority }
            } else {
                AgentOrder::Describe { episode, priority }
            });
        }
    }
}

#[cfg(test)]
mod tests;
