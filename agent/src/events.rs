//! What happens in the agent, for those control programs that asked to hear of it.
//!
//! Every subscriber has a short queue of its own; one that does not read loses its oldest events.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use zunft_protocol::local::Event;

/// Events that wait for one subscriber; beyond, the oldest are dropped.
const EVENTS_MAX: usize = 64;

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    closed: bool,
}

/// One subscriber's queue.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Subscription {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next event; `None` once the subscription is closed.
    pub(crate) fn next(&self) -> Option<Event> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(event) = queue.events.pop_front() {
                return Some(event);
            }
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the subscription and whoever waits for it.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }
}

/// Where events are announced.
#[derive(Debug, Default)]
pub(crate) struct Events {
    subscribers: Mutex<Vec<Weak<Subscription>>>,
}

impl Events {
    /// A queue that gets every event from now on, as long as it is held.
    pub(crate) fn subscribe(&self) -> Arc<Subscription> {
        let subscription = Arc::new(Subscription::default());
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        subscribers.push(Arc::downgrade(&subscription));
        subscription
    }

    /// Tells everyone.
    pub(crate) fn announce(&self, event: &Event) {
        let subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        for subscription in subscribers.iter().filter_map(Weak::upgrade) {
            let mut queue = subscription.lock();
            if queue.events.len() >= EVENTS_MAX {
                queue.events.pop_front();
            }
            queue.events.push_back(event.clone());
            subscription.arrived.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zunft_protocol::ids::SkillVersion;

    fn event(version: u32) -> Event {
        let skill = "push".parse().unwrap();
        Event::ReleaseChanged { skill, version: Some(SkillVersion(version)), previous: None }
    }

    #[test]
    fn a_subscriber_that_does_not_read_loses_the_oldest_events() {
        let events = Events::default();
        let subscription = events.subscribe();
        for version in 0..EVENTS_MAX as u32 + 3 {
            events.announce(&event(version));
        }
        assert_eq!(subscription.next(), Some(event(3)));
        subscription.close();
        assert_eq!(subscription.next(), None);
    }
}
