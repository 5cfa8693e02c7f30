//! Who a robot is: what its certificate says, and nothing else.

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zunft_protocol::ids::{RobotId, SiteId, TenantId};

/// A robot's place in the world, as the hub's CA certified it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RobotIdentity {
    /// Who owns it.
    pub tenant: TenantId,
    /// Where it is.
    pub site: SiteId,
    /// Which one.
    pub robot: RobotId,
}

/// Why a certificate does not name a robot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("client certificate cannot be read")]
    Certificate,
    /// No URI of ours, or several.
    #[error("client certificate must name one robot as spiffe://zunft/tenant/T/site/S/robot/R")]
    Name,
}

impl fmt::Display for RobotIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://zunft/tenant/{}/site/{}/robot/{}", self.tenant, self.site, self.robot)
    }
}

impl FromStr for RobotIdentity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let path = uri.strip_prefix("spiffe://zunft/").ok_or(IdentityError::Name)?;
        let parts: Vec<&str> = path.split('/').collect();
        let ["tenant", tenant, "site", site, "robot", robot] = parts[..] else {
            return Err(IdentityError::Name);
        };
        let name = |_| IdentityError::Name;
        Ok(Self {
            tenant: tenant.parse().map_err(name)?,
            site: site.parse().map_err(name)?,
            robot: robot.parse().map_err(name)?,
        })
    }
}

/// What a verified certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedRobot {
    /// Who.
    pub identity: RobotIdentity,
    /// The certificate's serial number, in lower-case hexadecimal.
    pub serial: String,
}

/// Reads the robot's name from a certificate that the TLS layer has verified.
pub fn robot_of_certificate(der: &[u8]) -> Result<CertifiedRobot, IdentityError> {
    let (_rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate)?;
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Certificate)?;
    let names = names.ok_or(IdentityError::Name)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| {
        let GeneralName::URI(uri) = name else { return None };
        Some(*uri)
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(IdentityError::Name);
    };
    Ok(CertifiedRobot { identity: uri.parse()?, serial: serial_text(certificate.raw_serial()) })
}

/// A serial number as text, without the leading zero that keeps DER integers positive.
pub(crate) fn serial_text(serial: &[u8]) -> String {
    let significant = serial.iter().position(|&byte| byte != 0).map_or(&serial[..0], |first| &serial[first..]);
    significant.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_written() {
        let uri = "spiffe://zunft/tenant/acme/site/bonn/robot/r-1";
        assert_eq!(uri.parse::<RobotIdentity>().unwrap().to_string(), uri);
        for bad in [
            "spiffe://other/tenant/acme/site/bonn/robot/r-1",
            "spiffe://zunft/tenant/acme/site/bonn/robot/",
            "spiffe://zunft/tenant/acme/site/bonn/robot/r-1/x",
            "spiffe://zunft/tenant/../site/bonn/robot/r-1",
            "spiffe://zunft/site/bonn/tenant/acme/robot/r-1",
        ] {
            assert_eq!(bad.parse::<RobotIdentity>(), Err(IdentityError::Name), "{bad}");
        }
    }
}
