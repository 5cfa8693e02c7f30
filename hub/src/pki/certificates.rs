//! X.509: what the hub's authority certifies, and for how long.
//!
//! Keys are ECDSA P-256, which every TLS stack and TPM knows. Nothing here touches the disk or reads a clock.

use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{HUB_DNS_NAME, PkiError};
use crate::identity::{RobotIdentity, serial_text};

const DAY_SECS: u64 = 24 * 3600;
/// The authority outlives the robots that trust it.
const CA_LIFETIME_SECS: u64 = 20 * 365 * DAY_SECS;
/// Renewed at a start in the second half; a hub restarts more often than every two and a half years.
const HUB_LIFETIME_SECS: u64 = 5 * 365 * DAY_SECS;
const ROBOT_LIFETIME_SECS: u64 = 365 * DAY_SECS;
/// A robot's clock may be behind the hub's by this much.
const BACKDATE_SECS: u64 = 3600;

/// What a CA's key and its fixed name can do.
#[derive(Debug)]
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// A robot's new key and certificate.
pub(super) struct IssuedRobot {
    pub(super) certificate_pem: String,
    pub(super) key_pem: String,
    pub(super) serial: String,
    pub(super) expires_unix_secs: u64,
}

impl Authority {
    pub(super) fn generate() -> Result<Self, PkiError> {
        Ok(Self::of_key(generate_key()?))
    }

    pub(super) fn of_key_pem(pem: &str) -> Option<Self> {
        KeyPair::from_pem(pem).ok().map(Self::of_key)
    }

    fn of_key(key: KeyPair) -> Self {
        Self { issuer: Issuer::new(ca_params(), key) }
    }

    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The authority's own certificate.
    pub(super) fn certificate(&self, now_unix_secs: u64) -> Result<Certificate, PkiError> {
        let mut params = ca_params();
        validity(&mut params, None, now_unix_secs + CA_LIFETIME_SECS);
        params.self_signed(self.issuer.key()).map_err(|source| failed("the authority", source))
    }

    /// A server certificate for the hub's key.
    pub(super) fn certify_hub(&self, key_pem: &str, now_unix_secs: u64) -> Result<Certificate, PkiError> {
        let refused = |source| failed(HUB_DNS_NAME, source);
        let key = KeyPair::from_pem(key_pem).map_err(refused)?;
        let mut params = CertificateParams::new(vec![HUB_DNS_NAME.to_owned()]).map_err(refused)?;
        params.distinguished_name = named(HUB_DNS_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.certify(params, &key, None, now_unix_secs + HUB_LIFETIME_SECS).map(|(certificate, _)| certificate)
    }

    /// A new key and a client certificate for one robot.
    pub(super) fn certify_robot(&self, identity: &RobotIdentity, now_unix_secs: u64) -> Result<IssuedRobot, PkiError> {
        let name = identity.to_string();
        let key = generate_key()?;
        let mut params = CertificateParams::default();
        let uri = name.as_str().try_into().map_err(|source| failed(&name, source))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.distinguished_name = named(identity.robot.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let expires_unix_secs = now_unix_secs + ROBOT_LIFETIME_SECS;
        let begin = now_unix_secs.saturating_sub(BACKDATE_SECS);
        let (certificate, serial) = self.certify(params, &key, Some(begin), expires_unix_secs)?;
        Ok(IssuedRobot { certificate_pem: certificate.pem(), key_pem: key.serialize_pem(), serial, expires_unix_secs })
    }

    fn certify(
        &self,
        mut params: CertificateParams,
        key: &KeyPair,
        begin_unix_secs: Option<u64>,
        end_unix_secs: u64,
    ) -> Result<(Certificate, String), PkiError> {
        validity(&mut params, begin_unix_secs, end_unix_secs);
        let serial = random_serial()?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(|source| failed("a key", source))?;
        Ok((certificate, serial_text(&serial)))
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Zunft hub authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Without a beginning, valid since 2020: a robot without a clock takes the day its program was built for today, and
/// that may be before the hub's first start.
fn validity(params: &mut CertificateParams, begin_unix_secs: Option<u64>, end_unix_secs: u64) {
    let at = |unix_secs| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_secs);
    params.not_before = begin_unix_secs.map_or_else(|| date_time_ymd(2020, 1, 1), at);
    params.not_after = at(end_unix_secs);
}

fn named(common_name: &str) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Sixteen random bytes of a positive number, so that no two certificates share one.
fn random_serial() -> Result<[u8; 16], PkiError> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| PkiError::Randomness)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn generate_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| failed("a new key", source))
}

pub(super) fn generate_key_pem() -> Result<String, PkiError> {
    Ok(generate_key()?.serialize_pem())
}

fn failed(subject: &str, source: rcgen::Error) -> PkiError {
    PkiError::Certificate { subject: subject.to_owned(), source }
}

/// Whether less than half of the hub certificate's life is left.
pub(super) fn needs_renewal(certificate: &CertificateDer<'_>, now_unix_secs: u64) -> bool {
    match X509Certificate::from_der(certificate) {
        Err(_) => true,
        Ok((_rest, certificate)) => {
            let end = certificate.validity().not_after.timestamp();
            end < (now_unix_secs + HUB_LIFETIME_SECS / 2) as i64
        }
    }
}

pub(super) fn parse_pem(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

pub(super) fn parse_key_pem(pem: &str) -> Option<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()
}
