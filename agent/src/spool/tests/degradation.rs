//! A disk that fails costs steps, never the agent: the spool says so once, and recovers by itself.

use std::sync::atomic::AtomicUsize;

use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::{Event, Level, Metadata};

use super::*;

/// Counts what an operator would be told as an error.
#[derive(Clone, Default)]
struct Errors(Arc<AtomicUsize>);

impl tracing::Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &SpanRecord<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Runs `f`; returns how many errors it logged.
fn errors(f: impl FnOnce()) -> usize {
    let errors = Errors::default();
    tracing::subscriber::with_default(errors.clone(), f);
    errors.0.load(Ordering::Relaxed)
}

/// A disk with two episodes, each with a segment for itself.
fn recorded() -> SimDisk {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    for number in 0..2 {
        bench.begin(number);
        bench.steps(number, 0..160);
        bench.end(number);
        bench.commit();
    }
    SimDisk::of(bench.disk.synced())
}

/// Records an episode and says whether it is on disk.
fn records(bench: &mut Bench, number: u8) -> bool {
    bench.begin(number);
    bench.steps(number, 0..5);
    bench.end(number);
    bench.commit();
    bench.episodes().iter().any(|(episode, _)| episode.recording == recording(number))
}

#[test]
fn a_disk_that_is_read_only_at_the_start_still_shows_what_is_safe_and_takes_steps_when_it_can() {
    let disk = recorded();
    disk.set_fault(Fault::Broken);
    let logged = errors(|| {
        let mut bench = Bench::on(disk.clone(), 100);
        assert!(matches!(bench.shared.accepting(), Err(Refusal::Disk(_))));
        let offered: Vec<u64> = bench.shared.index().offerable().map(|episode| episode.ordinal).collect();
        assert_eq!(offered, [0], "the newest segment is not known to be durable");
        assert_eq!(bench.worker.due(), Some(bench.now + Duration::from_secs(1)));
        for number in 10..13 {
            assert!(!records(&mut bench, number));
        }
        disk.set_fault(Fault::None);
        bench.commit();
        assert_eq!(bench.shared.accepting(), Ok(()));
        assert!(records(&mut bench, 20));
        assert_eq!(bench.shared.index().offerable().count(), 3);
    });
    assert_eq!(logged, 1, "an operator is told once");
}

#[test]
fn a_disk_that_cannot_be_read_at_the_start_is_tried_again() {
    let disk = recorded();
    let shared = Arc::new(Shared::new(0, false));
    let room = Room { segment_bytes: SEGMENT_BYTES, spool_bytes_max: 100 * SEGMENT_BYTES, free_bytes_min: 0 };
    let open = || {
        let policy = EvictionPolicy::default();
        Worker::open(disk.clone(), room, clear(), POLICY, policy, identity(), Arc::clone(&shared))
    };
    let logged = errors(|| {
        disk.set_fault(Fault::Unreadable);
        for _ in 0..3 {
            assert!(worker_or_refusal(open(), &shared, now()).is_none());
            assert!(matches!(shared.accepting(), Err(Refusal::Disk(_))));
        }
        disk.set_fault(Fault::None);
        assert!(worker_or_refusal(open(), &shared, now()).is_some());
    });
    assert_eq!(shared.accepting(), Ok(()));
    assert_eq!((shared.index().sealed().len(), logged), (2, 1));
}

#[test]
fn a_disk_that_is_full_at_the_start_takes_steps_when_there_is_room() {
    for disk in [SimDisk::new(0), recorded()] {
        disk.set_fault(Fault::Full);
        let logged = errors(|| {
            let mut bench = Bench::on(disk.clone(), 100);
            assert!(bench.shared.accepting().is_err());
            assert!(!records(&mut bench, 10));
            disk.set_fault(Fault::None);
            bench.commit();
            assert_eq!(bench.shared.accepting(), Ok(()));
            assert!(records(&mut bench, 11));
        });
        assert_eq!(logged, 1);
    }
}

#[test]
fn a_disk_that_fills_in_the_middle_keeps_every_step_that_was_taken() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    let tracker = bench.begin(1);
    bench.steps(1, 0..20);
    bench.commit();
    let logged = errors(|| {
        bench.disk.set_fault(Fault::Full);
        let mut step = 20;
        while tracker.refusal.get().is_none() {
            bench.steps(1, step..step + 20);
            step += 20;
            bench.commit();
            assert!(step < 10_000, "no disk can hold this");
        }
        assert!(!records(&mut bench, 2));
        bench.disk.set_fault(Fault::None);
        bench.commit();
        let whole = bench.episodes();
        assert_eq!((whole.len(), whole[0].1.steps), (1, step));
        assert_eq!(whole[0].1.end, EpisodeEnd::Truncated { limit: Truncation::SpoolFull });
        assert!(records(&mut bench, 3));
    });
    assert_eq!(logged, 1);
}
