//! Who this robot is: read from the certificate that the hub issued, so that it can be said only once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use zunft_protocol::ids::{RobotId, SiteId, TenantId};

/// Certificates are a few kilobytes; more than this is another file.
const CERTIFICATE_BYTES_MAX: u64 = 1024 * 1024;

/// Tenant, site and robot of this agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who owns the fleet.
    pub tenant: TenantId,
    /// Where the robot is.
    pub site: SiteId,
    /// Which robot.
    pub robot: RobotId,
}

/// Why a certificate does not say who the robot is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file.
    #[error("certificate {} cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a certificate in PEM.
    #[error("{} is not a certificate in PEM; make one with `zunft robot add`", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate of something else.
    #[error(
        "certificate {} names no robot (a URI spiffe://zunft/tenant/T/site/S/robot/R); make one with `zunft robot add`",
        path.display()
    )]
    NoRobot {
        /// Which file.
        path: PathBuf,
    },
}

/// Reads the robot's identity from its certificate.
pub fn read(path: &Path) -> Result<Identity, IdentityError> {
    let read = |source| IdentityError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(read)?.len() > CERTIFICATE_BYTES_MAX {
        return Err(IdentityError::Malformed { path: path.to_owned() });
    }
    let bytes = fs::read(path).map_err(read)?;
    let malformed = || IdentityError::Malformed { path: path.to_owned() };
    let (pem, _) = Pem::read(io::Cursor::new(&bytes)).map_err(|_| malformed())?;
    let certificate = pem.parse_x509().map_err(|_| malformed())?;
    let names = certificate.subject_alternative_name().map_err(|_| malformed())?;
    names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .find_map(|name| if let GeneralName::URI(uri) = name { parse_uri(uri) } else { None })
        .ok_or_else(|| IdentityError::NoRobot { path: path.to_owned() })
}

/// Reads `spiffe://zunft/tenant/T/site/S/robot/R`.
fn parse_uri(uri: &str) -> Option<Identity> {
    let mut parts = uri.strip_prefix("spiffe://zunft/")?.split('/');
    let mut named = |label: &str| if parts.next()? == label { parts.next() } else { None };
    let tenant = named("tenant")?.parse().ok()?;
    let site = named("site")?.parse().ok()?;
    let robot = named("robot")?.parse().ok()?;
    parts.next().is_none().then_some(Identity { tenant, site, robot })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_names_tenant_site_and_robot_and_nothing_else_does() {
        let identity = parse_uri("spiffe://zunft/tenant/acme/site/hall-1/robot/r7").unwrap();
        assert_eq!(identity.tenant.as_str(), "acme");
        assert_eq!(identity.site.as_str(), "hall-1");
        assert_eq!(identity.robot.as_str(), "r7");
        for bad in [
            "spiffe://other/tenant/acme/site/s/robot/r",
            "spiffe://zunft/tenant/acme/site/s/robot",
            "spiffe://zunft/tenant/acme/site/s/robot/r/more",
            "spiffe://zunft/tenant/../site/s/robot/r",
            "spiffe://zunft/site/s/tenant/acme/robot/r",
            "",
        ] {
            assert_eq!(parse_uri(bad), None, "{bad}");
        }
    }

    #[test]
    fn identity_comes_from_the_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("robot.pem");
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        assert!(matches!(read(&path), Err(IdentityError::NoRobot { .. })));
        let uri = "spiffe://zunft/tenant/acme/site/s/robot/r1".try_into().unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
        fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
        assert_eq!(read(&path).unwrap().robot.as_str(), "r1");
        fs::write(&path, "not a certificate").unwrap();
        assert!(matches!(read(&path), Err(IdentityError::Malformed { .. })));
        let missing = read(&folder.path().join("missing.pem")).unwrap_err().to_string();
        assert!(missing.contains("missing.pem"), "{missing}");
    }
}
