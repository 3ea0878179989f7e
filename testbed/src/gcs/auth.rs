//! Service accounts, their keys, and the tokens they get or make.

use super::Permissions;
use super::http::{Call, Response, json};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The grant a service account asks with: <https://developers.google.com/identity/protocols/oauth2/service-account#httprest>.
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The audience that Google's page gives for such a grant, whatever `token_uri` says.
const GOOGLE_TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// The audience of a self-signed token for Cloud Storage: <https://google.aip.dev/auth/4111>.
const AUDIENCE: &str = "https://storage.googleapis.com/";

/// A JWT lives an hour at most.
const JWT_LIFETIME_S: u64 = 3600;

/// How far a sender's clock may be ahead.
const CLOCK_SKEW_S: u64 = 300;

const TOKEN_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Keys of this process, made when they are first wanted: a double in each of many tests need not make its own.
static KEYS: Mutex<Vec<Arc<KeyPair>>> = Mutex::new(Vec::new());

fn key(index: usize) -> io::Result<Arc<KeyPair>> {
    let mut keys = KEYS.lock().unwrap_or_else(PoisonError::into_inner);
    while keys.len() <= index {
        keys.push(Arc::new(KeyPair::generate(KeySize::Rsa2048).map_err(|_| io::Error::other("cannot make an RSA key"))?));
    }
    keys.get(index).cloned().ok_or_else(|| io::Error::other("cannot make an RSA key"))
}

/// What a scope lets its holder do: <https://cloud.google.com/storage/docs/oauth-scopes>.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Read,
    Write,
}

impl Scope {
    fn parse(scopes: &str) -> Option<Self> {
        let mut found = None;
        for scope in scopes.split_whitespace() {
            match scope.strip_prefix("https://www.googleapis.com/auth/") {
                Some("cloud-platform" | "devstorage.full_control" | "devstorage.read_write") => return Some(Self::Write),
                Some("cloud-platform.read-only" | "devstorage.read_only") => found = Some(Self::Read),
                _ => (),
            }
        }
        found
    }

    fn narrow(self, permissions: Permissions) -> Permissions {
        match self {
            Self::Write => permissions,
            Self::Read => Permissions { create: false, delete: false, ..permissions },
        }
    }
}

/// A service account.
pub(super) struct Account {
    /// The name tests know it by.
    pub(super) name: String,
    pub(super) email: String,
    key_id: String,
    key: Arc<KeyPair>,
}

/// Who a bearer speaks for.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) email: String,
    pub(super) permissions: Permissions,
}

struct Grant {
    account: usize,
    scope: Scope,
    expires_s: u64,
}

/// Accounts and tokens.
pub(super) struct Desk {
    pub(super) accounts: Vec<Account>,
    permissions: Mutex<Vec<Permissions>>,
    /// Every bearer that was given out or accepted.
    grants: Mutex<HashMap<String, Grant>>,
    token_lifetime: Duration,
}

impl Desk {
    pub(super) fn new(identities: &[super::Identity], token_lifetime: Duration) -> io::Result<Self> {
        let mut accounts = Vec::new();
        for (index, identity) in identities.iter().enumerate() {
            let email = format!("{}@immich-backup.iam.gserviceaccount.com", identity.name);
            accounts.push(Account { name: identity.name.clone(), email, key_id: random_hex(20)?, key: key(index)? });
        }
        let permissions = identities.iter().map(|identity| identity.permissions).collect();
        Ok(Self { accounts, permissions: Mutex::new(permissions), grants: Mutex::default(), token_lifetime })
    }

    pub(super) fn account(&self, name: &str) -> Option<(usize, &Account)> {
        self.accounts.iter().enumerate().find(|(_, account)| account.name == name)
    }

    pub(super) fn set_permissions(&self, account: usize, permissions: Permissions) {
        if let Some(place) = self.permissions.lock().unwrap_or_else(PoisonError::into_inner).get_mut(account) {
            *place = permissions;
        }
    }

    /// Returns what the console hands out as the key of a service account.
    ///
    /// <https://cloud.google.com/iam/docs/keys-create-delete#creating>
    pub(super) fn key_json(account: &Account, url: &str, with_base_url: bool) -> io::Result<String> {
        let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&*account.key).map_err(|_| io::Error::other("cannot encode an RSA key"))?;
        let mut lines = String::from("-----BEGIN PRIVATE KEY-----\n");
        for line in BASE64_STANDARD.encode(der.as_ref()).as_bytes().chunks(64) {
            lines.push_str(&String::from_utf8_lossy(line));
            lines.push('\n');
        }
        lines.push_str("-----END PRIVATE KEY-----\n");
        let mut key = json!({
            "type": "service_account",
            "project_id": "immich-backup",
            "private_key_id": account.key_id,
            "private_key": lines,
            "client_email": account.email,
            "client_id": "100000000000000000000",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": format!("{url}/token"),
            "universe_domain": "googleapis.com",
        });
        if let (true, Some(key)) = (with_base_url, key.as_object_mut()) {
            key.insert("gcs_base_url".into(), url.into());
        }
        Ok(format!("{key:#}\n"))
    }

    /// Gives out a token without being asked over HTTP.
    pub(super) fn issue(&self, account: usize) -> io::Result<String> {
        self.grant(account, Scope::Write)
    }

    fn grant(&self, account: usize, scope: Scope) -> io::Result<String> {
        let token = format!("ya29.{}", random_hex(64)?);
        let grant = Grant { account, scope, expires_s: now_s() + self.token_lifetime.as_secs() };
        self.grants.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), grant);
        Ok(token)
    }

    /// Every bearer seen until now is expired from now on.
    pub(super) fn expire_tokens(&self) {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner).values_mut().for_each(|grant| grant.expires_s = 0);
    }

    /// Returns who `bearer` speaks for, if it is one of ours and has not expired.
    pub(super) fn caller(&self, bearer: &str) -> Option<Caller> {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        if !grants.contains_key(bearer) {
            let grant = self.self_signed(bearer)?;
            grants.insert(bearer.to_owned(), grant);
        }
        let grant = grants.get(bearer).filter(|grant| grant.expires_s > now_s())?;
        let account = self.accounts.get(grant.account)?;
        let permissions = self.permissions.lock().unwrap_or_else(PoisonError::into_inner).get(grant.account).copied()?;
        Some(Caller { name: account.name.clone(), email: account.email.clone(), permissions: grant.scope.narrow(permissions) })
    }

    /// A JWT that an account signed for Cloud Storage is a bearer as it stands: `iss` and `sub` are the account, and either `aud` names
    /// the service or `scope` the scopes.
    ///
    /// <https://google.aip.dev/auth/4111>
    fn self_signed(&self, bearer: &str) -> Option<Grant> {
        let (account, claims) = self.verified(bearer).ok()?;
        if claims.get("sub") != claims.get("iss") {
            return None;
        }
        let scope = match (claims.get("aud").and_then(Value::as_str), claims.get("scope").and_then(Value::as_str)) {
            (None, Some(scopes)) => Scope::parse(scopes)?,
            (Some(AUDIENCE), None) => Scope::Write,
            _ => return None,
        };
        Some(Grant { account, scope, expires_s: claims.get("exp")?.as_u64()? })
    }

    /// Returns account and claims of a JWT whose signature and times are right.
    fn verified(&self, jwt: &str) -> Result<(usize, Value), Denial> {
        let malformed = Denial("invalid_grant", "Bad Request");
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed);
        let (signed, signature) = jwt.rsplit_once('.').ok_or(malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(malformed)?;
        let header: Value = serde_json::from_slice(&part(header)?).map_err(|_| malformed)?;
        let claims: Value = serde_json::from_slice(&part(claims)?).map_err(|_| malformed)?;
        let issuer = claims.get("iss").and_then(Value::as_str).ok_or(malformed)?;
        let found = self.accounts.iter().enumerate().find(|(_, account)| account.email == issuer);
        let (index, account) = found.ok_or(Denial("invalid_grant", "Invalid grant: account not found"))?;
        let bad_signature = Denial("invalid_grant", "Invalid JWT Signature.");
        if header.get("alg").and_then(Value::as_str) != Some("RS256") || header.get("kid").is_some_and(|kid| kid.as_str() != Some(&account.key_id)) {
            return Err(bad_signature);
        }
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, account.key.public_key().as_ref());
        public.verify(signed.as_bytes(), &part(signature)?).map_err(|_| bad_signature)?;
        let time = |name: &str| claims.get(name).and_then(Value::as_u64);
        let now = now_s();
        match (time("iat"), time("exp")) {
            (Some(iat), Some(exp)) if iat <= now + CLOCK_SKEW_S && exp > now && exp.saturating_sub(iat) <= JWT_LIFETIME_S => Ok((index, claims)),
            _ => Err(Denial(
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.",
            )),
        }
    }

    /// Answers `POST /token`.
    ///
    /// <https://developers.google.com/identity/protocols/oauth2/service-account#httprest>
    pub(super) async fn token(&self, call: &mut Call, url: &str) -> Response {
        let form = match call.body.read(TOKEN_REQUEST_BYTES_MAX).await {
            Ok(form) => super::http::Query::form(&form),
            Err(refusal) => return refusal.into_json(),
        };
        let answer = self.exchange(form.get("grant_type"), form.get("assertion"), &[&format!("{url}/token"), GOOGLE_TOKEN_URI]);
        match answer.and_then(|(account, scope)| self.grant(account, scope).map_err(|_| Denial("internal_failure", "cannot make a token"))) {
            Ok(token) => json(StatusCode::OK, &json!({ "access_token": token, "expires_in": self.token_lifetime.as_secs(), "token_type": "Bearer" })),
            Err(Denial(error, description)) => json(StatusCode::BAD_REQUEST, &json!({ "error": error, "error_description": description })),
        }
    }

    fn exchange(&self, grant_type: Option<&str>, assertion: Option<&str>, audiences: &[&str]) -> Result<(usize, Scope), Denial> {
        if grant_type != Some(JWT_BEARER) {
            return Err(Denial("unsupported_grant_type", "Invalid grant_type"));
        }
        let (account, claims) = self.verified(assertion.ok_or(Denial("invalid_request", "Missing required parameter: assertion"))?)?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if !text("aud").is_some_and(|audience| audiences.contains(&audience)) {
            return Err(Denial("invalid_grant", "Invalid JWT: Failed audience check."));
        }
        let scope = text("scope").and_then(Scope::parse).ok_or(Denial("invalid_scope", "Invalid OAuth scope or ID token audience provided."))?;
        Ok((account, scope))
    }

    /// Returns `claims` as a JWT that `account` signed.
    pub(super) fn sign(account: &Account, claims: &Value) -> io::Result<String> {
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": account.key_id });
        let signed = format!("{}.{}", BASE64_URL_SAFE_NO_PAD.encode(header.to_string()), BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; account.key.public_modulus_len()];
        let random = aws_lc_rs::rand::SystemRandom::new();
        account.key.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).map_err(|_| io::Error::other("cannot sign"))?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// `error` and `error_description` of the token endpoint.
#[derive(Clone, Copy)]
struct Denial(&'static str, &'static str);

pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub(super) fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no random numbers"))?;
    Ok(hex::encode(random))
}
