//! Stores of the tests' servers.

use immich_backup_core::event::Monitor;
use immich_backup_core::repository::cloud::{Access, CloudStore, GcsCredentials, Options, RetryPolicy};
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::store::Store;
use immich_backup_testbed::gcs::Double;
use immich_backup_testbed::servers::{Azurite, Bucket, Container, Credentials};
use object_store::StaticCredentialProvider;
use object_store::aws::AwsCredential;
use std::sync::Arc;
use std::time::Duration;

/// Retries soon, for tests.
pub fn options(access: Access) -> Options {
    Options { access, retry: RetryPolicy { retries: 5, first_wait: Duration::from_millis(20) }, idle: Duration::from_secs(5), ..Options::default() }
}

/// Access with these keys.
pub fn keys(credentials: &Credentials) -> Access {
    let credential = AwsCredential { key_id: credentials.access_key.clone(), secret_key: credentials.secret_key.clone(), token: None };
    Access { aws: Some(Arc::new(StaticCredentialProvider::new(credential))), ..Access::default() }
}

/// The store at `url`.
pub fn open(url: &str, options: Options) -> Arc<dyn Store> {
    Arc::new(CloudStore::open(&Place::parse(url).unwrap(), options).unwrap())
}

/// The store below `prefix` of a bucket; `more` is added to its URL.
pub fn s3_at(bucket: &Bucket, prefix: &str, more: &str) -> Arc<dyn Store> {
    s3_over(bucket, &bucket.endpoint, prefix, more, None)
}

/// Likewise, over another address of the server.
pub fn s3_over(bucket: &Bucket, endpoint: &str, prefix: &str, more: &str, monitor: Option<Arc<dyn Monitor>>) -> Arc<dyn Store> {
    let mut options = options(keys(&bucket.credentials));
    options.monitor = monitor.unwrap_or(options.monitor);
    open(&format!("s3://{}/{prefix}?endpoint={endpoint}{more}", bucket.name), options)
}

/// The store below `prefix` of a container.
pub fn azure_at(container: &Container, prefix: &str) -> Arc<dyn Store> {
    azure_over(container, &container.endpoint, prefix)
}

/// Likewise, over another address of the server.
pub fn azure_over(container: &Container, endpoint: &str, prefix: &str) -> Arc<dyn Store> {
    let azure = vec![("AZURE_STORAGE_ACCOUNT_KEY".to_owned(), Azurite::KEY.to_owned())];
    let access = Access { azure, ..Access::default() };
    open(&format!("az://{}/{prefix}?account={}&endpoint={endpoint}", container.name, Azurite::ACCOUNT), options(access))
}

/// The store below `prefix` of the double's bucket, as `identity`.
pub fn gcs_at(double: &Double, identity: &str, prefix: &str) -> Arc<dyn Store> {
    gcs_over(double, double.url(), identity, prefix)
}

/// Likewise, over another address of the double.
pub fn gcs_over(double: &Double, endpoint: &str, identity: &str, prefix: &str) -> Arc<dyn Store> {
    let access = Access { gcs: GcsCredentials::Key(double.key_json(identity)), ..Access::default() };
    open(&format!("gs://{}/{prefix}?endpoint={endpoint}", double.bucket()), options(access))
}

/// The credentials of the environment, as far as they are plain ones.
pub fn access_of_environment() -> Access {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut access = Access { aws_region: variable("AWS_REGION"), ..Access::default() };
    if let (Some(key_id), Some(secret_key)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        let credential = AwsCredential { key_id, secret_key, token: variable("AWS_SESSION_TOKEN") };
        access.aws = Some(Arc::new(StaticCredentialProvider::new(credential)));
    }
    if let Some(json) = variable("GCS_CREDENTIALS") {
        access.gcs = GcsCredentials::Key(json);
    } else if let Some(path) = variable("GOOGLE_APPLICATION_CREDENTIALS") {
        access.gcs = GcsCredentials::File(path.into());
    }
    access.azure = std::env::vars().filter(|(name, _)| name.starts_with("AZURE_")).collect();
    access
}
