//! How a database is reached: what a URL says, and how PostgreSQL's programs are told of it without anybody else seeing the password.

use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::fmt;

/// What stands where a secret would.
const HIDDEN: &str = "***";

/// The database where a URL names none: Immich's default.
pub const DATABASE_DEFAULT: &str = "immich";

/// A password: neither shown nor written.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Takes `text` as a password.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The password itself, for the environment of a program that needs it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Why a text is no URL of a database. It never repeats the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConnection {
    /// Another scheme, or none.
    #[error("the database's URL does not begin with `postgresql://` or `postgres://`")]
    Scheme,
    /// Text that is no UTF-8 once decoded, or has a NUL in it.
    #[error("the database's URL has a {0} that is no text")]
    Text(&'static str),
    /// A port that is none.
    #[error("the database's URL has a port that is no number from 1 to 65535")]
    Port,
    /// An address in brackets that has no end.
    #[error("the database's URL has an address in brackets that does not end")]
    Brackets,
    /// A parameter that PostgreSQL's programs take from no environment variable.
    #[error("the database's URL has the parameter `{0}`, which cannot be passed on")]
    Parameter(String),
}

impl InvalidConnection {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Parameter(_) => Some("leave it out; what is understood is in PostgreSQL's documentation under \"Environment Variables\" of libpq"),
            Self::Scheme | Self::Text(_) | Self::Port | Self::Brackets => {
                Some("write `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, with %40 for an @ and so on in the password")
            }
        }
    }
}

/// Parameters of a URL and the variables that say the same (PostgreSQL documentation, 34.1.2 and 34.15). `application_name` and
/// `client_encoding` are ours to set; `uselibpqcompat` is for Node alone.
const PARAMETERS: [(&str, &str); 31] = [
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("gssdelegation", "PGGSSDELEGATION"),
    ("gssencmode", "PGGSSENCMODE"),
    ("gsslib", "PGGSSLIB"),
    ("hostaddr", "PGHOSTADDR"),
    ("krbsrvname", "PGKRBSRVNAME"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("options", "PGOPTIONS"),
    ("passfile", "PGPASSFILE"),
    ("require_auth", "PGREQUIREAUTH"),
    ("requirepeer", "PGREQUIREPEER"),
    ("requiressl", "PGREQUIRESSL"),
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("sslcert", "PGSSLCERT"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcompression", "PGSSLCOMPRESSION"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslkey", "PGSSLKEY"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslsni", "PGSSLSNI"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("ssl", "PGSSLMODE"),
];
const PASSED_OVER: [&str; 4] = ["application_name", "fallback_application_name", "client_encoding", "uselibpqcompat"];

/// Where a database is and as whom to speak to it. Debug and Display hide the password.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// Name, address or folder of a socket; several with commas between, as libpq takes them. libpq's default where absent.
    host: Option<String>,
    /// As many as hosts, or one.
    port: Option<String>,
    user: Option<String>,
    database: Option<String>,
    password: Option<Password>,
    /// Further variables for the programs' environment.
    environment: BTreeMap<String, String>,
}

fn decoded(text: &str, what: &'static str) -> Result<String, InvalidConnection> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| InvalidConnection::Text(what))?;
    if text.contains('\0') { Err(InvalidConnection::Text(what)) } else { Ok(text.into_owned()) }
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl Connection {
    /// One to libpq's default server (the socket of this machine) and Immich's database.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With this host: a name, an address, or the folder of a socket.
    #[must_use]
    pub fn with_host(mut self, host: impl Into<String>) -> Self {
        self.host = some(host.into());
        self
    }

    /// With this port.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port.to_string());
        self
    }

    /// With this user. Without one it is libpq's default: the user of the operating system.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>) -> Self {
        self.user = some(user.into());
        self
    }

    /// With this database; see [`DATABASE_DEFAULT`].
    #[must_use]
    pub fn with_database(mut self, database: impl Into<String>) -> Self {
        self.database = some(database.into());
        self
    }

    /// With this password.
    #[must_use]
    pub fn with_password(mut self, password: Password) -> Self {
        self.password = Some(password);
        self
    }

    /// With a further variable in the environment of PostgreSQL's programs, which get no other: a `PG…` of the caller's own, or `HOME` (where
    /// libpq looks for certificates and `.pgpass`). What the connection itself says comes first.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.entry(name.into()).or_insert_with(|| value.into());
        self
    }

    /// With what `other` says of user, database and password, where this one says nothing.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.user = self.user.or(other.user);
        self.database = self.database.or(other.database);
        self.password = self.password.or(other.password);
        self
    }

    /// What a URL as libpq takes it says: `postgresql://user:password@host:port/database?parameter=value`. Several hosts, sockets
    /// (`?host=/run/postgresql`, `%2Frun%2Fpostgresql` as host) and the parameters that have a variable are understood, `ssl=true` and Node's
    /// `sslmode=no-verify` besides.
    ///
    /// # Errors
    /// It is no such URL. The text is not repeated.
    pub fn parse(url: &str) -> Result<Self, InvalidConnection> {
        let rest = url.strip_prefix("postgresql://").or_else(|| url.strip_prefix("postgres://")).ok_or(InvalidConnection::Scheme)?;
        let mut connection = Self::default();
        // As libpq has it: what comes before an @ that no slash comes before, so that a password may have a ? in it. Of several @ the last
        // ends it: passwords have these, host names do not.
        let authority = rest.split('/').next().unwrap_or_default();
        let rest = match authority.rsplit_once('@') {
            Some((user_info, _)) => {
                let rest = rest.get(user_info.len() + 1..).unwrap_or_default();
                let (user, password) = user_info.split_once(':').map_or((user_info, None), |(user, password)| (user, Some(password)));
                connection.user = some(decoded(user, "user")?);
                connection.password = password.filter(|text| !text.is_empty()).map(|text| decoded(text, "password")).transpose()?.map(Password);
                rest
            }
            _ => rest,
        };
        let (place, query) = rest.split_once('?').map_or((rest, ""), |(place, query)| (place, query));
        let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
        // A password with a slash in it, which has to be written %2F: what follows is a part of it, and no database.
        if database.contains('@') {
            return Err(InvalidConnection::Text("password or database, with an @ or a / in it that is not written %40 or %2F,"));
        }
        connection.database = some(decoded(database, "database")?);
        connection.set_hosts(hosts)?;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name, "parameter")?;
            connection.set_parameter(&name, decoded(value, "parameter")?)?;
        }
        Ok(connection)
    }

    fn set_hosts(&mut self, hosts: &str) -> Result<(), InvalidConnection> {
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[') {
                Some(address) => {
                    let (address, rest) = address.split_once(']').ok_or(InvalidConnection::Brackets)?;
                    (address, rest.strip_prefix(':').unwrap_or(rest))
                }
                None => host.split_once(':').unwrap_or((host, "")),
            };
            if !is_port(port) {
                return Err(InvalidConnection::Port);
            }
            names.push(decoded(name, "host")?);
            ports.push(port);
        }
        let given = |texts: &str| texts.chars().any(|c| c != ',').then(|| texts.to_owned());
        (self.host, self.port) = (given(&names.join(",")), given(&ports.join(",")));
        Ok(())
    }

    fn set_parameter(&mut self, name: &str, value: String) -> Result<(), InvalidConnection> {
        match name {
            "host" => self.host = some(value),
            "port" if value.split(',').all(is_port) => self.port = some(value),
            "port" => return Err(InvalidConnection::Port),
            "user" => self.user = some(value),
            "dbname" => self.database = some(value),
            "password" => self.password = some(value).map(Password),
            _ if PASSED_OVER.contains(&name) => {}
            _ => {
                let (_, variable) = PARAMETERS.iter().find(|(known, _)| *known == name).ok_or_else(|| InvalidConnection::Parameter(name.to_owned()))?;
                let value = match (name, value.as_str()) {
                    ("ssl", "true" | "1") | ("sslmode", "no-verify") => "require".to_owned(),
                    ("ssl", "false" | "0") => "disable".to_owned(),
                    ("ssl", _) => return Err(InvalidConnection::Parameter(name.to_owned())),
                    _ => value,
                };
                self.environment.insert((*variable).to_owned(), value);
            }
        }
        Ok(())
    }

    /// The database's name.
    #[must_use]
    pub fn database(&self) -> &str {
        self.database.as_deref().unwrap_or(DATABASE_DEFAULT)
    }

    /// What people call it: "`immich` at localhost:5432".
    #[must_use]
    pub fn target(&self) -> String {
        let host = self.host.as_deref().or_else(|| self.environment.get("PGHOST").map(String::as_str)).unwrap_or("this machine's socket");
        let port = self.port.as_deref().map(|port| format!(":{port}")).unwrap_or_default();
        format!("`{}` at {host}{port}", self.database())
    }

    /// The host, where it was said; several with commas between.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The user, where it was said.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The database's name, where it was said.
    #[must_use]
    pub fn said_database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    pub(crate) fn password(&self) -> Option<&Password> {
        self.password.as_ref()
    }

    /// Texts of the connection that are no secret, so that they are not hidden where the password happens to be the same.
    pub(super) fn is_known(&self, text: &str) -> bool {
        self.user.as_deref() == Some(text) || self.database() == text || self.host.as_deref() == Some(text)
    }

    /// What PostgreSQL's programs are told, in their environment alone. It holds the password.
    pub(super) fn variables(&self) -> BTreeMap<String, String> {
        let mut variables = self.environment.clone();
        let own = [("PGHOST", &self.host), ("PGPORT", &self.port), ("PGUSER", &self.user)];
        let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        variables.extend(own);
        variables.insert("PGDATABASE".to_owned(), self.database().to_owned());
        if let Some(password) = &self.password {
            variables.insert("PGPASSWORD".to_owned(), password.reveal().to_owned());
        }
        variables
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variables of a URL, as `NAME=value` in the order of their names.
    fn variables(url: &str) -> String {
        let variables = Connection::parse(url).unwrap().variables();
        variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn urls_mean_what_they_mean_to_libpq() {
        let cases = [
            ("postgres://", "PGDATABASE=immich"),
            ("postgresql:///photos", "PGDATABASE=photos"),
            ("postgres://db", "PGDATABASE=immich PGHOST=db"),
            ("postgres://me:pass@db:5433/photos", "PGDATABASE=photos PGHOST=db PGPASSWORD=pass PGPORT=5433 PGUSER=me"),
            ("postgres://me@[::1]:5433/x", "PGDATABASE=x PGHOST=::1 PGPORT=5433 PGUSER=me"),
            ("postgres:///x?host=/run/postgresql&port=5433&user=me", "PGDATABASE=x PGHOST=/run/postgresql PGPORT=5433 PGUSER=me"),
            ("postgres://me@%2Frun%2Fpostgresql/x", "PGDATABASE=x PGHOST=/run/postgresql PGUSER=me"),
            ("postgres://me:p%40s%2Fs%3A@db/x%20y", "PGDATABASE=x y PGHOST=db PGPASSWORD=p@s/s: PGUSER=me"),
            ("postgres://me:p@s?s=&:#@db/x", "PGDATABASE=x PGHOST=db PGPASSWORD=p@s?s=&:# PGUSER=me"),
            ("postgres://a:1,b:2/x?target_session_attrs=primary", "PGDATABASE=x PGHOST=a,b PGPORT=1,2 PGTARGETSESSIONATTRS=primary"),
            ("postgres://a,b/x", "PGDATABASE=x PGHOST=a,b"),
            ("postgres://db/x?sslmode=verify-full&sslrootcert=/ca.pem", "PGDATABASE=x PGHOST=db PGSSLMODE=verify-full PGSSLROOTCERT=/ca.pem"),
            ("postgres://db/x?sslmode=no-verify&uselibpqcompat=true", "PGDATABASE=x PGHOST=db PGSSLMODE=require"),
            ("postgres://db?ssl=true&application_name=x", "PGDATABASE=immich PGHOST=db PGSSLMODE=require"),
            ("postgres:///?host=/tmp&user=me@home&password=a%26b", "PGDATABASE=immich PGHOST=/tmp PGPASSWORD=a&b PGUSER=me@home"),
        ];
        for (url, expected) in cases {
            assert_eq!(variables(url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_url_of_a_database_is_refused_without_being_repeated() {
        let cases = [
            "mysql://me:hunter2@db/x",
            "me:hunter2@db",
            "postgres://me:hunter2@db:port/x",
            "postgres://me:hunter2@db:70000/x",
            "postgres://me:hunter2@db:0/x",
            "postgres://me:hunter2@[::1/x",
            "postgres://me:hunter2%ff@db/x",
            "postgres://me:hunter2%00@db/x",
            "postgres://me:hunter2@db/x?color=red",
            "postgres://me:hunter2@db/x?port=x",
            "postgres://me@db/x?password=hunter2&sslpassword=y",
        ];
        for url in cases {
            let error = Connection::parse(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn neither_debug_nor_display_nor_the_target_shows_the_password() {
        let connection = Connection::parse("postgres://me:hunter2@db:5433/photos").unwrap();
        assert_eq!(connection.target(), "`photos` at db:5433");
        assert!(!format!("{connection:?} {connection} {:?}", connection.password()).contains("hunter2"));
        assert_eq!(connection.variables()["PGPASSWORD"], "hunter2");
    }

    #[test]
    fn parts_make_up_the_same_as_a_url_and_extras_do_not_replace_them() {
        let parts = Connection::new().with_host("db").with_port(5433).with_user("me").with_database("photos").with_password(Password::new("hunter2"));
        assert_eq!(parts, Connection::parse("postgres://me:hunter2@db:5433/photos").unwrap());
        let extra = parts.with_variable("PGHOST", "elsewhere").with_variable("PGSSLROOTCERT", "/ca.pem");
        assert_eq!((extra.variables()["PGHOST"].as_str(), extra.variables()["PGSSLROOTCERT"].as_str()), ("db", "/ca.pem"));
    }
}
