//! The hub's keys: its certificate authority, its own certificate, and each tenant's signing keys.
//!
//! ```text
//! pki/ca.pem, ca.key               the authority that certifies robots and the hub itself
//! pki/hub.pem, hub.key             the hub's server certificate, renewed at start
//! pki/admin.token                  lets its reader do everything through the HTTP API
//! pki/tenants/T/root.dsse.json     the tenant's signed root
//! pki/tenants/T/root-{1,2,3}.key   development root keys: a real root's keys are never here
//! pki/tenants/T/publisher.key      signs releases during development
//! pki/tenants/T/assigner.key       signs assignments and receipts
//! ```
//! `.key` files are PKCS#8, those of tenants Ed25519 in DER. Folders appear whole or not at all.
//! It does not know which robots exist; that is metadata.

mod certificates;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::Ed25519KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zunft_protocol::dsse::{Envelope, KeyRejected, SigningKey};
use zunft_protocol::ids::TenantId;
use zunft_protocol::release::{Publisher, ROOT_TYPE, Root, TrustError, parse_envelope};

use crate::durable_file;
use crate::identity::RobotIdentity;
use certificates::Authority;

/// The DNS name that robots expect in the hub's certificate, whatever its address.
pub const HUB_DNS_NAME: &str = "zunft-hub";

/// Root keys of a development root, and how many must sign.
const ROOT_KEYS: usize = 3;
const ROOT_THRESHOLD: usize = 2;

/// Ten years: robots only warn about an expired root, but they should not have to.
const ROOT_LIFETIME_SECS: u64 = 10 * 365 * 24 * 3600;

const ADMIN_TOKEN_BYTES: usize = 32;

const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
const HUB_FILE: &str = "hub.pem";
const HUB_KEY_FILE: &str = "hub.key";
const TOKEN_FILE: &str = "admin.token";
const ROOT_FILE: &str = "root.dsse.json";
const PUBLISHER_KEY_FILE: &str = "publisher.key";
const ASSIGNER_KEY_FILE: &str = "assigner.key";

/// Why keys cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The disk, or a file that is gone.
    #[error("could not use key file {}; if it was lost, restore it from a backup", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk, while a folder of keys was made.
    #[error("could not make a folder of keys")]
    Make(#[from] io::Error),
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers for a key")]
    Randomness,
    /// A key file that is none.
    #[error("{} does not hold a usable key; restore it from a backup", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why, where it is known.
        #[source]
        source: Option<KeyRejected>,
    },
    /// A certificate could not be made or read.
    #[error("certificate of {subject} could not be made")]
    Certificate {
        /// Whose.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate file that is none.
    #[error("{} does not hold a certificate; restore it from a backup", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
    },
    /// A root that does not hold.
    #[error("{} is not a root that robots would accept", path.display())]
    Root {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<TrustError>,
    },
    /// A tenant without keys.
    #[error("tenant {tenant} does not exist on this hub")]
    Tenant {
        /// Which.
        tenant: TenantId,
    },
}

/// What one robot needs to connect and to know what to trust.
#[derive(Debug, Clone)]
pub struct RobotCredentials {
    /// Who the certificate is for.
    pub identity: RobotIdentity,
    /// The robot's certificate.
    pub certificate_pem: String,
    /// Its private key, which the hub does not keep.
    pub key_pem: String,
    /// The authority that certified the hub.
    pub ca_pem: String,
    /// The tenant's signed root.
    pub root: Envelope,
    /// Serial number of the certificate, in hexadecimal.
    pub serial: String,
    /// When the certificate ends.
    pub expires_unix_secs: u64,
}

/// A tenant's signing keys and its root.
#[derive(Debug)]
pub struct TenantKeys {
    /// The signed root, as robots get it.
    pub root_envelope: Envelope,
    /// What it says.
    pub root: Root,
    /// Signs releases during development.
    pub publisher: SigningKey,
    /// Signs assignments and receipts.
    pub assigner: SigningKey,
}

/// All keys of one hub.
#[derive(Debug)]
pub struct Pki {
    path: PathBuf,
    authority: Authority,
    ca: CertificateDer<'static>,
    ca_pem: String,
    admin_token: String,
}

/// The hub's own certificate and key, for TLS.
#[derive(Debug)]
pub struct HubCertificate {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Pki {
    /// Reads the keys in `path`, making them first where there are none.
    pub fn open(path: &Path, now_unix_secs: u64) -> Result<Self, PkiError> {
        if !path.exists() {
            durable_file::create_folder_whole(path, |folder| fill(folder, now_unix_secs))?;
        }
        let ca_pem = read_text(&path.join(CA_FILE))?;
        let ca = certificates::parse_pem(&ca_pem).ok_or_else(|| PkiError::Pem { path: path.join(CA_FILE) })?;
        let key_path = path.join(CA_KEY_FILE);
        let authority =
            Authority::of_key_pem(&read_text(&key_path)?).ok_or(PkiError::Key { path: key_path, source: None })?;
        let admin_token = read_text(&path.join(TOKEN_FILE))?.trim().to_owned();
        Ok(Self { path: path.to_owned(), authority, ca, ca_pem, admin_token })
    }

    /// The authority's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The authority's certificate as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The token that opens the whole HTTP API.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// Where [`Pki::admin_token`] is written.
    pub fn admin_token_path(&self) -> PathBuf {
        self.path.join(TOKEN_FILE)
    }

    /// The hub's certificate, renewed when less than half of its life is left.
    pub fn hub_certificate(&self, now_unix_secs: u64) -> Result<HubCertificate, PkiError> {
        let (certificate_path, key_path) = (self.path.join(HUB_FILE), self.path.join(HUB_KEY_FILE));
        let certificate = certificates::parse_pem(&read_text(&certificate_path)?)
            .ok_or(PkiError::Pem { path: certificate_path.clone() })?;
        let certificate = if certificates::needs_renewal(&certificate, now_unix_secs) {
            let key_pem = read_text(&key_path)?;
            let renewed = self.authority.certify_hub(&key_pem, now_unix_secs)?;
            durable_file::write(&certificate_path, renewed.pem().as_bytes())
                .map_err(|source| PkiError::Io { path: certificate_path, source })?;
            renewed.der().clone()
        } else {
            certificate
        };
        let key = certificates::parse_key_pem(&read_text(&key_path)?)
            .ok_or(PkiError::Key { path: key_path, source: None })?;
        Ok(HubCertificate { certificate, key })
    }

    /// A secret that stays the same over restarts: with it a hub that was killed and is back can tell robots that it
    /// has forgotten their connections.
    pub(crate) fn reset_secret(&self) -> Result<[u8; 32], PkiError> {
        let key_pem = read_text(&self.path.join(HUB_KEY_FILE))?;
        Ok(blake3::derive_key("zunft hub quic stateless reset v1", key_pem.as_bytes()))
    }

    /// Makes a key and a certificate for one robot. The caller records the serial number.
    pub fn issue_robot(&self, identity: &RobotIdentity, now_unix_secs: u64) -> Result<RobotCredentials, PkiError> {
        let root = self.tenant(&identity.tenant)?.root_envelope;
        let issued = self.authority.certify_robot(identity, now_unix_secs)?;
        Ok(RobotCredentials {
            identity: identity.clone(),
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
            ca_pem: self.ca_pem.clone(),
            root,
            serial: issued.serial,
            expires_unix_secs: issued.expires_unix_secs,
        })
    }

    /// Reads a tenant's keys.
    pub fn tenant(&self, tenant: &TenantId) -> Result<TenantKeys, PkiError> {
        let path = self.tenant_path(tenant);
        if !path.is_dir() {
            return Err(PkiError::Tenant { tenant: tenant.clone() });
        }
        let root_path = path.join(ROOT_FILE);
        let bytes = fs::read(&root_path).map_err(|source| PkiError::Io { path: root_path.clone(), source })?;
        let refused = |source| PkiError::Root { path: root_path.clone(), source: Box::new(source) };
        let root_envelope = parse_envelope("root", &bytes).map_err(refused)?;
        let root = read_root(&root_envelope).map_err(refused)?;
        let publisher = read_key(&path.join(PUBLISHER_KEY_FILE))?;
        let assigner = read_key(&path.join(ASSIGNER_KEY_FILE))?;
        Ok(TenantKeys { root_envelope, root, publisher, assigner })
    }

    /// Where a tenant's keys lie.
    pub fn tenant_path(&self, tenant: &TenantId) -> PathBuf {
        self.path.join("tenants").join(tenant.as_str())
    }
}

/// Verifies a root as a robot would when it pins it.
fn read_root(envelope: &Envelope) -> Result<Root, TrustError> {
    // Any name will do: pinning a root does not depend on it.
    let robot = "hub".parse().expect("hub is a robot's name");
    zunft_protocol::release::Trust::pin(envelope, robot, 0).map(|trust| trust.root().clone())
}

fn fill(folder: &Path, now_unix_secs: u64) -> Result<(), PkiError> {
    let write = |name: &str, bytes: &[u8]| durable_file::write_synced(&folder.join(name), bytes);
    let authority = Authority::generate()?;
    write(CA_FILE, authority.certificate(now_unix_secs)?.pem().as_bytes())?;
    write(CA_KEY_FILE, authority.key_pem().as_bytes())?;
    let hub_key = certificates::generate_key_pem()?;
    write(HUB_FILE, authority.certify_hub(&hub_key, now_unix_secs)?.pem().as_bytes())?;
    write(HUB_KEY_FILE, hub_key.as_bytes())?;
    let mut token = [0; ADMIN_TOKEN_BYTES];
    SystemRandom::new().fill(&mut token).map_err(|_| PkiError::Randomness)?;
    let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    write(TOKEN_FILE, format!("{token}\n").as_bytes())?;
    let tenants = folder.join("tenants");
    durable_file::create_folder(&tenants)?;
    let tenant = default_tenant();
    let tenant_folder = tenants.join(tenant.as_str());
    durable_file::create_folder_whole(&tenant_folder, |folder| fill_tenant(folder, &tenant, now_unix_secs))
}

fn fill_tenant(folder: &Path, tenant: &TenantId, now_unix_secs: u64) -> Result<(), PkiError> {
    let make_key = |name: &str| {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| PkiError::Randomness)?;
        let path = folder.join(name);
        durable_file::write_synced(&path, pkcs8.as_ref())?;
        SigningKey::from_pkcs8(pkcs8.as_ref()).map_err(|source| PkiError::Key { path, source: Some(source) })
    };
    let root_keys = (1..=ROOT_KEYS).map(|i| make_key(&format!("root-{i}.key"))).collect::<Result<Vec<_>, _>>()?;
    let publisher = make_key(PUBLISHER_KEY_FILE)?;
    let assigner = make_key(ASSIGNER_KEY_FILE)?;
    let root = Root {
        tenant: tenant.clone(),
        version: 1,
        expires_unix_secs: now_unix_secs + ROOT_LIFETIME_SECS,
        root_keys: root_keys.iter().map(SigningKey::public).collect(),
        root_threshold: ROOT_THRESHOLD as u32,
        publishers: vec![Publisher { key: publisher.public(), skills: Vec::new() }],
        assigners: vec![assigner.public()],
    };
    let signers: Vec<&SigningKey> = root_keys.iter().take(ROOT_THRESHOLD).collect();
    debug_assert_eq!(root.sign(&signers).payload_type, ROOT_TYPE);
    durable_file::write_synced(&folder.join(ROOT_FILE), &root.sign(&signers).to_json())?;
    Ok(())
}

/// The tenant that every hub has from its first start.
pub fn default_tenant() -> TenantId {
    "default".parse().expect("default is a tenant's name")
}

fn read_text(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

fn read_key(path: &Path) -> Result<SigningKey, PkiError> {
    let pkcs8 = fs::read(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })?;
    SigningKey::from_pkcs8(&pkcs8).map_err(|source| PkiError::Key { path: path.to_owned(), source: Some(source) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::identity::robot_of_certificate;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn keys_are_made_once_and_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki");
        // What a power cut left: nobody trusts these keys yet.
        fs::create_dir_all(folder.path().join(".pki.partial/tenants")).unwrap();
        let token = Pki::open(&path, NOW).unwrap().admin_token().to_owned();
        assert_eq!(token.len(), 64);
        assert_eq!(Pki::open(&path, NOW + 1).unwrap().admin_token(), token);
        for secret in ["ca.key", "hub.key", "admin.token", "tenants/default/root-1.key"] {
            assert_eq!(fs::metadata(path.join(secret)).unwrap().permissions().mode() & 0o777, 0o600, "{secret}");
        }
        let keys = Pki::open(&path, NOW).unwrap().tenant(&default_tenant()).unwrap();
        assert_eq!(keys.root.assigners, [keys.assigner.public()]);
        assert_eq!(keys.root_envelope.signatures.len(), 2);
    }

    #[test]
    fn robots_get_a_certificate_with_their_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::open(&folder.path().join("pki"), NOW).unwrap();
        let identity: RobotIdentity = "spiffe://zunft/tenant/default/site/bonn/robot/r1".parse().unwrap();
        let issued = pki.issue_robot(&identity, NOW).unwrap();
        let der = certificates::parse_pem(&issued.certificate_pem).unwrap();
        let read = robot_of_certificate(&der).unwrap();
        assert_eq!((read.identity, read.serial), (identity, issued.serial));
        let stranger = "spiffe://zunft/tenant/other/site/bonn/robot/r1".parse().unwrap();
        assert!(matches!(pki.issue_robot(&stranger, NOW), Err(PkiError::Tenant { .. })));
    }

    #[test]
    fn a_lost_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki");
        Pki::open(&path, NOW).unwrap();
        fs::remove_file(path.join("ca.key")).unwrap();
        assert!(Pki::open(&path, NOW).unwrap_err().to_string().contains("ca.key"));
    }

    #[test]
    fn the_hubs_certificate_is_renewed_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::open(&folder.path().join("pki"), NOW).unwrap();
        let first = pki.hub_certificate(NOW).unwrap().certificate;
        assert_eq!(pki.hub_certificate(NOW + 3600).unwrap().certificate, first);
        assert_ne!(pki.hub_certificate(NOW + 4 * 365 * 24 * 3600).unwrap().certificate, first);
    }
}
