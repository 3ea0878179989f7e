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
