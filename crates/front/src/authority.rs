//! The local certificate authority: what proves the names of a deployment that has no certificate
//! of the world's.
//!
//! Clients on the machine are told to trust it, so it is worth little to a thief: it can vouch for
//! names of the deployment's domain and nothing else, which clients check (name constraints).

use std::time::{Duration, SystemTime};

use atoll_core::{Error, Result, error::codes};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, date_time_ymd,
};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use x509_parser::{
    extensions::GeneralName,
    pem::parse_x509_pem,
    prelude::{FromDer, X509Certificate},
};

use crate::domain::Domain;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an authority is good for.
const LIFE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// How long a certificate is good for. Some clients refuse any of more than 398 days.
const LEAF_LIFE: Duration = Duration::from_secs(397 * 24 * 60 * 60);

/// Clocks differ: what is made now is good from a day before.
const SKEW: Duration = DAY;

/// A certificate authority for one domain.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    /// When it expires.
    expires: SystemTime,
}

impl Authority {
    /// Makes one for `domain`.
    ///
    /// # Errors
    /// `INTERNAL` when it cannot be made, for want of randomness say.
    pub fn generate(domain: &Domain) -> Result<Self> {
        let make = || -> std::result::Result<Self, rcgen::Error> {
            let key = KeyPair::generate()?;
            let now = SystemTime::now();
            let made = CertifiedIssuer::self_signed(parameters(domain, now), key)?;
            let certificate = made.pem();
            let key = KeyPair::from_pem(&made.key().serialize_pem())?;
            let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
            Ok(Self { issuer, certificate, expires: now + LIFE - SKEW })
        };
        make().map_err(|error| cannot_make(&error))
    }

    /// The authority whose certificate and key these are, in PEM form; none when it is not for
    /// `domain`, or will soon expire.
    ///
    /// # Errors
    /// With a sentence when they are not what [`generate`](Self::generate) has made.
    pub fn load(
        certificate: &str,
        key: &str,
        domain: &Domain,
    ) -> std::result::Result<Option<Self>, String> {
        let (_, pem) = parse_x509_pem(certificate.as_bytes()).map_err(|error| error.to_string())?;
        let (_, parsed) = X509Certificate::from_der(&pem.contents).map_err(|e| e.to_string())?;
        let key = KeyPair::from_pem(key).map_err(|error| error.to_string())?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err("the certificate is not of the key".to_owned());
        }
        let expires = parsed.validity().not_after.timestamp();
        let expires =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(expires).unwrap_or(0));
        if !is_for(&parsed, domain) || expires < SystemTime::now() + LEAF_LIFE {
            return Ok(None);
        }
        let issuer =
            Issuer::from_ca_cert_pem(certificate, key).map_err(|error| error.to_string())?;
        Ok(Some(Self { issuer, certificate: certificate.to_owned(), expires }))
    }

    /// What clients are to trust, in PEM form.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// Its key, in PEM form.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for `domain` and all names one label below it, and when it expires.
    pub(crate) fn issue(&self, domain: &Domain) -> Result<(CertifiedKey, SystemTime)> {
        let now = SystemTime::now();
        let expires = (now + LEAF_LIFE - SKEW).min(self.expires);
        let make = || -> std::result::Result<_, rcgen::Error> {
            let epoch = date_time_ymd(1970, 1, 1);
            let names = [domain.name().to_owned(), format!("*.{}", domain.name())];
            let mut leaf = CertificateParams::new(names)?;
            leaf.distinguished_name.push(DnType::CommonName, "Atoll");
            leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            leaf.use_authority_key_identifier_extension = true;
            leaf.not_before = epoch + since_epoch(now - SKEW);
            leaf.not_after = epoch + since_epoch(expires);
            let key = KeyPair::generate()?;
            Ok((leaf.signed_by(&key, &self.issuer)?, key))
        };
        let (leaf, key) = make().map_err(|error| cannot_make(&error))?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(vec![leaf.der().clone()], key, &provider)
            .map_err(|error| cannot_make(&error))?;
        Ok((certified, expires))
    }
}

fn parameters(domain: &Domain, now: SystemTime) -> CertificateParams {
    let epoch = date_time_ymd(1970, 1, 1);
    let mut parameters = CertificateParams::default();
    let name = &mut parameters.distinguished_name;
    name.push(DnType::OrganizationName, "Atoll");
    name.push(DnType::CommonName, "Atoll local authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Mail, programs and clients have names that no constraint below binds.
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain.name().to_owned())],
        // A constraint binds names of its own kind only: without these, addresses would be free.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    });
    parameters.not_before = epoch + since_epoch(now - SKEW);
    parameters.not_after = epoch + since_epoch(now + LIFE - SKEW);
    parameters
}

/// Whether `certificate` is an authority for exactly `domain`.
fn is_for(certificate: &X509Certificate<'_>, domain: &Domain) -> bool {
    let permitted = certificate
        .name_constraints()
        .ok()
        .flatten()
        .and_then(|extension| extension.value.permitted_subtrees.as_deref());
    permitted.is_some_and(|permitted| {
        matches!(permitted, [only] if matches!(only.base, GeneralName::DNSName(name) if name == domain.name()))
    })
}

/// Whole seconds, which is all that a certificate can say.
fn since_epoch(time: SystemTime) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(since.as_secs())
}

fn cannot_make(error: &dyn std::fmt::Display) -> Error {
    Error::new(codes::INTERNAL, format!("a certificate could not be made: {error}."))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    };

    use super::*;

    /// Whether a client that trusts `authority` takes a certificate that it issued for `domain`.
    fn believed(authority: &Authority, domain: &str, name: &str, after: Duration) -> bool {
        let (certified, _) = authority.issue(&domain.parse().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
        roots.add(root.unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
        let name = ServerName::try_from(name).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = UnixTime::since_unix_epoch(now + after);
        let verifier = builder.build().unwrap();
        verifier.verify_server_cert(&certified.cert[0], &[], &name, &[], now).is_ok()
    }

    #[test]
    fn what_it_says_of_other_domains_is_not_believed() {
        let authority = Authority::generate(&"sbx.localhost".parse().unwrap()).unwrap();
        for name in ["sbx.localhost", "api.sbx.localhost"] {
            assert!(believed(&authority, "sbx.localhost", name, Duration::ZERO), "{name}");
        }
        assert!(!believed(&authority, "example.com", "example.com", Duration::ZERO));
        assert!(!believed(&authority, "example.com", "api.example.com", Duration::ZERO));
        assert!(!believed(&authority, "x.localhost", "api.x.localhost", Duration::ZERO));
    }

    #[test]
    fn it_vouches_for_servers_only() {
        let authority = Authority::generate(&"sbx.localhost".parse().unwrap()).unwrap();
        let (_, pem) = parse_x509_pem(authority.certificate_pem().as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth);
        assert!(!(usage.any || usage.client_auth || usage.code_signing || usage.email_protection));
    }

    #[test]
    fn certificates_last_a_year_and_no_longer_than_clients_allow() {
        let authority = Authority::generate(&"sbx.localhost".parse().unwrap()).unwrap();
        let after = |days| believed(&authority, "sbx.localhost", "sbx.localhost", DAY * days);
        assert!(after(395));
        assert!(!after(397));
    }
}
