//! Public keys as JSON Web Keys (RFC 7517, 7518, 8037), and what they have signed. Each key is good for one algorithm,
//! which its kind says: a token cannot choose another for it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use penstock_cluster::catalog::Algorithm;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use ring::signature::{RsaPublicKeyComponents, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::Value;

/// Keys of one set that are looked at.
const KEYS_LIMIT: usize = 100;
/// Bytes of the shortest RSA modulus.
const RSA_LEAST: usize = 2048 / 8;
/// Bytes of a coordinate on P-256, and of a key of Ed25519.
const COORDINATE: usize = 32;

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<PublicKey>,
}

/// A public key.
#[derive(Debug)]
pub(super) struct PublicKey {
    kid: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point, uncompressed.
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// The members of a key that are read; `use` and `key_ops` say what it is for.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// What a token calls an algorithm.
pub(super) fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Rs256 => "RS256",
        Algorithm::Es256 => "ES256",
        Algorithm::EdDsa => "EdDSA",
    }
}

impl KeySet {
    /// Reads a set. Keys of other kinds and for other ends stand in it too; they are passed over.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let set: Set = serde_json::from_slice(text).map_err(|_| "it is no JSON Web Key Set")?;
        let keys: Vec<PublicKey> = set.keys.into_iter().take(KEYS_LIMIT).filter_map(PublicKey::read).collect();
        if keys.is_empty() { Err("it has no key for RS256, ES256 or EdDSA") } else { Ok(Self { keys }) }
    }

    /// The key of that name for that algorithm; without a name, the only one for it.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<&PublicKey> {
        let mut fitting = self.keys.iter().filter(|key| key.material.algorithm() == algorithm);
        match kid {
            Some(kid) => fitting.find(|key| key.kid.as_deref() == Some(kid)),
            None => fitting.next().filter(|_| fitting.next().is_none()),
        }
    }
}

impl PublicKey {
    fn read(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let signs = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
            && jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        let material = Material::read(&jwk)?;
        let named = jwk.alg.as_deref().is_none_or(|alg| alg == name(material.algorithm()));
        (signs && named).then_some(Self { kid: jwk.kid, material })
    }

    /// Whether the key's owner has signed this message.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let with = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature)
        };
        let verified = match &self.material {
            Material::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            Material::P256(point) => with(&ECDSA_P256_SHA256_FIXED, point),
            Material::Ed25519(key) => with(&ED25519, key),
        };
        verified.is_ok()
    }
}

impl Material {
    fn read(jwk: &Jwk) -> Option<Self> {
        let bytes = |member: &Option<String>| URL_SAFE_NO_PAD.decode(member.as_deref()?).ok();
        let coordinate = |member| bytes(member).filter(|bytes| bytes.len() == COORDINATE);
        match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (number(bytes(&jwk.n)?), number(bytes(&jwk.e)?));
                (n.len() >= RSA_LEAST).then_some(Self::Rsa { n, e })
            }
            ("EC", Some("P-256")) => {
                let point = [vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat();
                Some(Self::P256(point))
            }
            ("OKP", Some("Ed25519")) => Some(Self::Ed25519(coordinate(&jwk.x)?)),
            _ => None,
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }
}

/// A number without the zeros that some write before it.
fn number(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().skip_while(|byte| *byte == 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The modulus of RFC 7515, A.2.
    const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    /// The claims of RFC 7515, A.2 and A.3.
    const CLAIMS: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

    fn set(keys: &str) -> Result<KeySet, &'static str> {
        KeySet::parse(format!("{{\"keys\": [{keys}]}}").as_bytes())
    }

    #[test]
    fn the_examples_of_rfc_7515_and_rfc_8037_verify_and_nothing_else_does() {
        let keys = format!(
            r#"{{"kty": "RSA", "n": "{N}", "e": "AQAB"}},
               {{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}},
               {{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}"#
        );
        let keys = set(&keys).unwrap();
        for (algorithm, message, signature) in [
            (
                Algorithm::Rs256,
                format!("eyJhbGciOiJSUzI1NiJ9.{CLAIMS}"),
                "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
            ),
            (
                Algorithm::Es256,
                format!("eyJhbGciOiJFUzI1NiJ9.{CLAIMS}"),
                "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            ),
            (
                Algorithm::EdDsa,
                "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc".to_owned(),
                "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
            ),
        ] {
            let key = keys.find(None, algorithm).unwrap();
            let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            assert!(key.verifies(message.as_bytes(), &signature), "{algorithm:?}");
            assert!(!key.verifies(&message.as_bytes()[1..], &signature), "{algorithm:?}");
            assert!(!key.verifies(message.as_bytes(), b""), "{algorithm:?}");
            *signature.last_mut().unwrap() ^= 1;
            assert!(!key.verifies(message.as_bytes(), &signature), "{algorithm:?}");
        }
    }

    #[test]
    fn only_keys_for_signatures_of_known_kinds_are_taken() {
        let ed = r#""kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
        let found = |keys: &str, kid| set(keys).is_ok_and(|set| set.find(kid, Algorithm::EdDsa).is_some());
        assert!(found(&format!(r#"{{{ed}, "use": "sig", "alg": "EdDSA", "key_ops": ["verify"]}}"#), None));
        assert!(found(&format!(r#"{{{ed}, "kid": "a", "x5c": ["…"]}}, {{"kty": "new"}}, 7"#), Some("a")));
        let two = format!(r#"{{{ed}, "kid": "a"}}, {{{ed}, "kid": "b"}}"#);
        assert!(found(&two, Some("b")) && !found(&two, Some("c")) && !found(&two, None), "which of two is not guessed");
        for key in [
            format!(r#"{{{ed}, "use": "enc"}}"#),
            format!(r#"{{{ed}, "alg": "RS256"}}"#),
            format!(r#"{{{ed}, "key_ops": ["encrypt"]}}"#),
            r#"{"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}"#.to_owned(),
            r#"{"kty": "OKP", "crv": "X25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#.to_owned(),
            r#"{"kty": "oct", "k": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#.to_owned(),
            format!(r#"{{"kty": "RSA", "e": "AQAB", "n": "{}"}}"#, &N[..172]),
            r#"{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"}"#.to_owned(),
            String::new(),
        ] {
            assert_eq!(set(&key).unwrap_err(), "it has no key for RS256, ES256 or EdDSA", "{key}");
        }
        assert_eq!(KeySet::parse(b"<html>").unwrap_err(), "it is no JSON Web Key Set");
    }
}
