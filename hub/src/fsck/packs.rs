//! Compares a tenant's packs with what the metadata says of them.

use std::collections::{BTreeMap, BTreeSet};

use zunft_protocol::Manifest;
use zunft_protocol::ids::{ChunkId, Digest, EpisodeId, RobotId, TenantId};

use super::adopt::{Orphan, adopt, read};
use super::examine::{Examined, examine};
use super::{Check, Finding, FsckError};
use crate::metadata::{ListedEpisode, Replacement};
use crate::store::pack::{Entry, EntryKind, Pack, PackBuilder};
use crate::store::{ListedObject, pack_key};

/// Episodes looked at in one go.
const PAGE: u32 = 1000;

/// What of the metadata cannot be read, or was taken out of it.
#[derive(Debug, Default)]
struct Damage {
    /// Chunks whose rows lead nowhere.
    unreadable: BTreeSet<ChunkId>,
    /// Chunks whose rows were taken out, because their bytes are broken.
    lost: BTreeSet<ChunkId>,
    /// Episodes whose rows were taken out for the same reason.
    unlisted: BTreeMap<EpisodeId, RobotId>,
    /// Packs to be registered.
    orphans: BTreeSet<Orphan>,
    /// Whether there are episodes whose rows lead nowhere.
    manifests_unreadable: bool,
}

impl Check<'_> {
    pub(super) async fn packs(
        &mut self,
        tenant: &TenantId,
        present: &BTreeMap<Digest, ListedObject>,
    ) -> Result<(), FsckError> {
        let known = self.metadata.packs(tenant).await?;
        let mut damage = Damage::default();
        for (&pack, object) in present {
            let rows = self.metadata.entries_of(tenant, pack).await?;
            let (owner, listed) = (tenant.clone(), rows.clone());
            let bytes = self.store.read(&object.key).await?;
            let examining = tokio::task::spawn_blocking(move || examine(&owner, pack, bytes, &listed));
            let examined = examining.await.expect("examining a pack does not panic");
            self.count(&examined);
            let orphan = Orphan { written_unix_ms: object.written_unix_ms, pack };
            if !examined.whole {
                self.damaged(tenant, orphan, &examined, &rows, &mut damage).await?;
            } else if known.contains_key(&pack) {
                self.known(tenant, pack, &examined, &rows, &mut damage).await?;
            } else {
                let (key, episodes) = (object.key.to_string(), examined.manifests().count() as u64);
                self.report.findings.push(Finding::OrphanPack { key, episodes, registered: self.repair });
                damage.orphans.insert(orphan);
            }
        }
        for &pack in known.keys().filter(|pack| !present.contains_key(*pack)) {
            self.report.findings.push(Finding::MissingPack { key: pack_key(tenant, pack).to_string() });
            damage.unreadable(self.metadata.entries_of(tenant, pack).await?.iter());
        }
        if self.repair {
            self.register(tenant, present, &mut damage).await?;
        }
        self.unreadable(tenant, damage).await
    }

    fn count(&mut self, examined: &Examined) {
        self.report.packs += 1;
        self.report.bytes += examined.bytes.len() as u64;
        let manifests = examined.intact.iter().filter(|entry| entry.kind == EntryKind::Manifest).count() as u64;
        self.report.manifests += manifests;
        self.report.chunks += examined.intact.len() as u64 - manifests;
    }

    /// A whole pack that the metadata knows: every row must fit it, and every chunk of its episodes be somewhere.
    async fn known(
        &mut self,
        tenant: &TenantId,
        pack: Digest,
        examined: &Examined,
        rows: &[Entry],
        damage: &mut Damage,
    ) -> Result<(), FsckError> {
        let place = |entry: &Entry| (entry.position, entry.bytes, entry.id);
        let intact: BTreeSet<(u64, u32, Digest)> = examined.intact.iter().map(place).collect();
        let wrong: Vec<&Entry> = rows.iter().filter(|row| !intact.contains(&place(row))).collect();
        if !wrong.is_empty() {
            let (key, rows) = (pack_key(tenant, pack).to_string(), wrong.len() as u64);
            self.report.findings.push(Finding::WrongRows { key, rows, corrected: self.repair });
            if self.repair {
                self.replace(
                    tenant,
                    pack,
                    Some((pack, examined.bytes.len() as u64, examined.intact.as_slice())),
                    &wrong,
                    damage,
                )
                .await?;
            } else {
                damage.unreadable(wrong.into_iter());
            }
        }
        let listed: BTreeSet<Digest> = rows.iter().map(|row| row.id).collect();
        for (_, manifest) in examined.manifests().filter(|(entry, _)| listed.contains(&entry.id)) {
            let chunks: Vec<ChunkId> = manifest.chunks().map(|chunk| chunk.id).collect();
            let present = self.metadata.present_chunks(tenant, &chunks).await?;
            damage.lost.extend(chunks.into_iter().filter(|chunk| !present.contains(chunk)));
        }
        Ok(())
    }

    /// A damaged pack: what is intact in it goes to a new one, and it out of the way.
    async fn damaged(
        &mut self,
        tenant: &TenantId,
        orphan: Orphan,
        examined: &Examined,
        rows: &[Entry],
        damage: &mut Damage,
    ) -> Result<(), FsckError> {
        let intact: BTreeSet<Digest> = examined.intact.iter().map(|entry| entry.id).collect();
        let broken: Vec<&Entry> = rows.iter().filter(|row| !intact.contains(&row.id)).collect();
        let key = pack_key(tenant, orphan.pack);
        let mut quarantined = None;
        if self.repair {
            let saved = saved(tenant, examined);
            // Where no entry is broken the copy has the same name: then the damaged one must make room first.
            let same = saved.as_ref().is_some_and(|(pack, _)| pack.digest == orphan.pack);
            if same {
                quarantined = self.quarantine(&key).await?;
            }
            let mut new = None;
            if let Some((pack, entries)) = saved {
                new = Some((pack.digest, pack.bytes, entries));
                self.store.put(&pack_key(tenant, pack.digest), pack.parts.into_iter().collect()).await?;
                damage.orphans.insert(Orphan { pack: pack.digest, ..orphan });
            }
            let new = new.as_ref().map(|(pack, bytes, entries)| (*pack, *bytes, entries.as_slice()));
            self.replace(tenant, orphan.pack, new, &broken, damage).await?;
            if !same {
                quarantined = self.quarantine(&key).await?;
            }
        } else {
            damage.unreadable(broken.into_iter());
        }
        let (key, intact) = (key.to_string(), examined.intact.len() as u64);
        self.report.findings.push(Finding::DamagedPack { key, intact, broken: examined.broken, quarantined });
        Ok(())
    }

    async fn replace(
        &self,
        tenant: &TenantId,
        pack: Digest,
        new: Option<(Digest, u64, &[Entry])>,
        broken: &[&Entry],
        damage: &mut Damage,
    ) -> Result<(), FsckError> {
        for entry in broken.iter().filter(|entry| entry.kind == EntryKind::Manifest) {
            let id = EpisodeId::from_bytes(*entry.id.as_bytes());
            if let Some(record) = self.metadata.episode(tenant, id).await? {
                damage.unlisted.insert(id, record.robot);
            }
        }
        let replacement = new.map(|(pack, bytes, entries)| Replacement { pack, bytes, entries });
        let lost = self.metadata.replace_pack(tenant, pack, replacement.as_ref(), self.now_unix_ms).await?;
        damage.lost.extend(lost);
        Ok(())
    }

    /// Registers orphans, and packs that hold another copy of what was lost.
    async fn register(
        &mut self,
        tenant: &TenantId,
        present: &BTreeMap<Digest, ListedObject>,
        damage: &mut Damage,
    ) -> Result<(), FsckError> {
        if !(damage.lost.is_empty() && damage.unlisted.is_empty()) {
            for (&pack, object) in present {
                let Ok(examined) = read(self.store, tenant, pack).await else { continue };
                if examined.whole && damage.concerns(&examined) {
                    damage.orphans.insert(Orphan { written_unix_ms: object.written_unix_ms, pack });
                }
            }
        }
        let adopted = adopt(self.store, self.metadata, tenant, &damage.orphans, &damage.lost).await?;
        for episode in adopted.rivals {
            self.report.findings.push(Finding::RivalEpisode { tenant: tenant.clone(), episode });
        }
        damage.unlisted.extend(adopted.incomplete);
        let lost: Vec<ChunkId> = damage.lost.iter().copied().collect();
        for found in self.metadata.present_chunks(tenant, &lost).await? {
            damage.lost.remove(&found);
        }
        let unlisted: Vec<EpisodeId> = damage.unlisted.keys().copied().collect();
        for episode in unlisted {
            if self.metadata.episode(tenant, episode).await?.is_some() {
                damage.unlisted.remove(&episode);
            }
        }
        Ok(())
    }

    /// Reports the episodes that the damage concerns; takes those out of the listing whose bytes are lost for good.
    async fn unreadable(&mut self, tenant: &TenantId, damage: Damage) -> Result<(), FsckError> {
        if damage.manifests_unreadable || !(damage.lost.is_empty() && damage.unreadable.is_empty()) {
            let mut page = self.metadata.listed_episodes(tenant, 0, PAGE).await?;
            while let Some(last) = page.last() {
                let after = last.arrival;
                for episode in page {
                    self.episode(tenant, episode, &damage).await?;
                }
                page = self.metadata.listed_episodes(tenant, after, PAGE).await?;
            }
        }
        for (episode, robot) in damage.unlisted {
            let tenant = tenant.clone();
            self.report.findings.push(Finding::UnreadableEpisode { tenant, episode, robot, unlisted: true });
        }
        Ok(())
    }

    async fn episode(&mut self, tenant: &TenantId, listed: ListedEpisode, damage: &Damage) -> Result<(), FsckError> {
        let range = listed.position..listed.position + u64::from(listed.bytes);
        let stored = self.store.read_range(&pack_key(tenant, listed.pack), range).await.ok();
        let stored = stored.filter(|stored| EpisodeId::of(stored) == listed.id);
        let manifest = stored.and_then(|stored| Manifest::decode(&stored).ok());
        let has = |chunks: &BTreeSet<ChunkId>| {
            manifest.as_ref().is_some_and(|manifest| manifest.chunks().any(|chunk| chunks.contains(&chunk.id)))
        };
        let lost = has(&damage.lost);
        if manifest.is_some() && !lost && !has(&damage.unreadable) {
            return Ok(());
        }
        // What is only missing may come back from a backup; what is lost may come back from the robot.
        let unlisted = self.repair && lost;
        if unlisted {
            self.metadata.forget_episode(tenant, listed.id).await?;
        }
        let (tenant, episode, robot) = (tenant.clone(), listed.id, listed.robot);
        self.report.findings.push(Finding::UnreadableEpisode { tenant, episode, robot, unlisted });
        Ok(())
    }
}

/// A pack of the intact entries, where there are any, with their places in it.
fn saved(tenant: &TenantId, examined: &Examined) -> Option<(Pack, Vec<Entry>)> {
    let mut builder = PackBuilder::new(tenant.clone());
    let mut entries = Vec::with_capacity(examined.intact.len());
    for entry in &examined.intact {
        let position = builder.add(entry.kind, entry.id, examined.stored(entry));
        entries.push(Entry { position, ..entry.clone() });
    }
    (!entries.is_empty()).then(|| (builder.finish(), entries))
}

impl Damage {
    fn unreadable<'a>(&mut self, rows: impl Iterator<Item = &'a Entry>) {
        for row in rows {
            match row.kind {
                EntryKind::Chunk => {
                    self.unreadable.insert(ChunkId::from_bytes(*row.id.as_bytes()));
                }
                EntryKind::Manifest => self.manifests_unreadable = true,
            }
        }
    }

    /// Whether a pack holds anything that was lost.
    fn concerns(&self, examined: &Examined) -> bool {
        examined.intact.iter().any(|entry| match entry.kind {
            EntryKind::Chunk => self.lost.contains(&ChunkId::from_bytes(*entry.id.as_bytes())),
            EntryKind::Manifest => self.unlisted.contains_key(&EpisodeId::from_bytes(*entry.id.as_bytes())),
        })
    }
}
