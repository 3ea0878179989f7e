use super::*;
use proptest::prelude::*;

fn of_yaml(text: &str) -> String {
    Redactor::default().yaml(text).unwrap()
}

fn of_variables(text: &str) -> String {
    Redactor::default().variables(text).unwrap()
}

#[test]
fn every_pattern_is_one() {
    for pattern in [&ASSIGNED, &HEADER, &COMMENTED, &OPTION, &USER, &DEFAULT, &REFERENCE, &BEFORE_VALUE] {
        assert!(pattern.is_some());
    }
}

/// Found by the fuzzer `variables`: what stood in place of the blank was the password of whoever used the copy.
#[test]
fn blanks_before_a_value_are_no_secret() {
    let text = "DB_PASSWORD= hunter2\nexport A_KEY=\t 'two words'\nTOKEN= ${OTHER}\nEMPTY_TOKEN= \n";
    let expected = format!("DB_PASSWORD= \"\" # {MARK}\nexport A_KEY=\t \"\" # {MARK}\nTOKEN= ${{OTHER}}\nEMPTY_TOKEN= \n");
    let mut redactor = Redactor::default();
    assert_eq!(redactor.variables(text).unwrap(), expected);
    assert_eq!(redactor.count, 2);
}

#[test]
fn a_comment_behind_a_name_without_a_value_stays_a_comment() {
    // Found by a fuzzer: the sign of the comment was taken for the value of an option.
    let text = "A=1\n-KEY # harmless\nexport -TOKEN # --password hunter2-hunter2\nB=2\n";
    let expected = format!("A=1\n-KEY # harmless\nexport -TOKEN # --password {MARK}\nB=2\n");
    let mut redactor = Redactor::default();
    assert_eq!(redactor.variables(text).unwrap(), expected);
    let names = |text: &str| variables::assignments(text).unwrap().into_iter().map(|one| one.name).collect::<Vec<_>>();
    assert_eq!(names(text), ["A", "-KEY", "-TOKEN", "B"]);
    assert_eq!(names(&expected), names(text));
}

#[test]
fn what_is_left_of_the_line_behind_a_value_is_a_comment_and_hides_nothing() {
    let text = "A=\"x\" DB_PASSWORD=hunter2\nB='y' and --password hunter3 # TOKEN: hunter4\n-KEY # not so\nC=z # PGPASSWORD=hunter5";
    let copy = Redactor::default().variables(text).unwrap();
    assert!(!copy.contains("hunter") && copy.contains("-KEY # not so\n"), "{copy}");
    let names = |text: &str| variables::assignments(text).unwrap().into_iter().map(|one| one.name).collect::<Vec<_>>();
    assert_eq!(names(&copy), ["A", "B", "-KEY", "C"]);
}

#[test]
fn a_variable_that_another_one_uses_as_a_password_is_one_also_over_several() {
    // Found by a fuzzer.
    let text = "DEEP=hunter1\nBASE=${DEEP}2\nPORT=5432\nHOST=db\nDB_PASSWORD=\"$BASE\"\nURL_KEY='$PORT'\nDB_URL=tcp://$HOST\nHOST=late\nUPLOAD_LOCATION=/srv\nDB_PASSWORD_FILE=$UPLOAD_LOCATION/pw\n";
    let mut redactor = Redactor::default();
    redactor.learn_variables(text);
    let copy = redactor.variables(text).unwrap();
    assert!(!copy.contains("hunter") && !copy.contains("}2"), "{copy}");
    for kept in ["PORT=5432\n", "HOST=db\n", "DB_PASSWORD=\"$BASE\"\n", "HOST=late\n", "UPLOAD_LOCATION=/srv\n"] {
        assert!(copy.contains(kept), "{kept:?} is gone: {copy}");
    }
}

#[test]
fn a_variable_that_stands_where_a_password_is_expected_is_one() {
    let compose = concat!(
        "services:\n",
        "  db:\n",
        "    environment:\n",
        "      DB_URL: postgres://${OWNER}:${IN_URL}@database/immich\n",
        "      PASSWORD_FILE: ${FOLDER}/password\n",
        "      ADDRESS: http://${HOST}:${PORT}/\n",
        "      BEARER: https://${ALONE}@host/\n",
        "      SHARED: https://host/x?sv=1&sig=${SIGNED}\n",
        "    command: valkey-server --requirepass ${IN_COMMAND:?must be set} --port ${PORT}\n",
        "    healthcheck: {test: [CMD, redis-cli, -a, $IN_LIST, --user, 'me', ping]}\n",
        "  job:\n",
        "    command: [curl, -u, '$OWNER:$OF_CURL', --password-file, $FOLDER/x, --password, $OF_OPTION, '--token=$OF_TOKEN', '--port', '$PORT']\n",
        "    user: ${PUID}:${PGID}\n",
        "    labels: ['a.header=Authorization: Bearer $IN_HEADER', \"probe=PGPASSWORD=$IN_TEXT psql\"]\n",
        "secrets: {db: {environment: OF_COMPOSE}, other: {file: ./environment}}\n",
    );
    let secret = ["IN_URL", "ALONE", "SIGNED", "IN_COMMAND", "IN_LIST", "OF_CURL", "OF_OPTION", "OF_TOKEN", "IN_HEADER", "IN_TEXT", "OF_COMPOSE", "IN_DEPTH"];
    let plain = ["OWNER", "FOLDER", "HOST", "PORT", "PUID", "PGID"];
    let assigned = |name: &&str| format!("{name}=value-of-{name}\n");
    let text: String = secret.iter().chain(&plain).map(assigned).collect::<String>() + "CACHE=redis://:${IN_DEPTH}@cache\n";
    let mut redactor = Redactor::default();
    redactor.learn_names(compose);
    while redactor.learn_variables(&text) {}
    let copy = redactor.variables(&text).unwrap();
    for name in secret {
        assert!(copy.contains(&format!("{name}=\"\" # {MARK}\n")), "{name} is left: {copy}");
    }
    for name in plain {
        assert!(copy.contains(&assigned(&name)), "{name} is gone: {copy}");
    }
    assert!(copy.contains("CACHE=redis://:${IN_DEPTH}@cache\n"), "{copy}");
}

#[test]
fn the_password_in_a_url_that_a_container_has_is_one_everywhere() {
    let mut redactor = Redactor::default();
    redactor.learn("CACHE", "redis://me:hunter22-hunter22@cache/0");
    redactor.learn("ADDRESS", "http://database:5432/Not-A-Secret1");
    let text = "A=hunter22-hunter22\nB=database:5432/Not-A-Secret1\n";
    assert_eq!(redactor.swept(text), format!("A={MARK}\nB=database:5432/Not-A-Secret1\n"));
}

#[test]
fn a_password_between_single_quotes_is_one_though_it_begins_like_a_variable() {
    let text = "DB_PASSWORD='$ecretWord99'\nNOTE=not $ecretWord99 any more\nJWT_SECRET=$DB_PASSWORD\n";
    let mut redactor = Redactor::default();
    redactor.learn_variables(text);
    let copy = redactor.variables(text).unwrap();
    let copy = redactor.swept(&copy);
    assert!(!copy.contains("ecretWord") && copy.contains("JWT_SECRET=$DB_PASSWORD\n"), "{copy}");
}

#[test]
fn a_file_of_variables_keeps_everything_but_its_secrets() {
    let text = concat!(
        "# UPLOAD_LOCATION: where it is\n",
        "UPLOAD_LOCATION=./library\n",
        "TZ=Europe/Berlin # here\n",
        "\n",
        "DB_PASSWORD=postgres\n",
        "# DB_PASSWORD=hunter2 was the old one\n",
        "JWT_SECRET='a b\nc' # quoted\n",
        "EMPTY_TOKEN=\n",
        "SAME_KEY=${DB_PASSWORD}\n",
        "DB_USERNAME=postgres\n",
        "SMTP=smtps://me:hunter2@mail.example:465\n",
    );
    let expected = concat!(
        "# UPLOAD_LOCATION: where it is\n",
        "UPLOAD_LOCATION=./library\n",
        "TZ=Europe/Berlin # here\n",
        "\n",
        "DB_PASSWORD=\"\" # <redacted by immich-backup>\n",
        "# DB_PASSWORD=<redacted by immich-backup>\n",
        "JWT_SECRET=\"\" # <redacted by immich-backup> # quoted\n",
        "EMPTY_TOKEN=\n",
        "SAME_KEY=${DB_PASSWORD}\n",
        "DB_USERNAME=postgres\n",
        "SMTP=smtps://<redacted by immich-backup>@mail.example:465\n",
    );
    assert_eq!(of_variables(text), expected);
}

#[test]
fn a_compose_file_keeps_everything_but_its_secrets() {
    let text = r#"# Ünlike
name: immich
x-word: &word abc
x-common: &common
  TZ: Europe/Berlin
  API_KEY: &key abcdef0123
services:
  immich-server:
    image: immich-server:${IMMICH_VERSION:-release}
    environment:
      <<: *common
      DB_PASSWORD: ${DB_PASSWORD}
      DB_URL: "postgres://me:hunter2@db/immich"
      PLAIN_URL: postgres://${U}:${P}@db/immich
      MAIL_PASSWORD: ${MAIL_PASSWORD:-swordfish} # the default
      OTHER_TOKEN: *key
      THIRD_TOKEN: *word
      LONG_SECRET: |
        first line
        second line
      FLOW: { A_PASSWORD: 'x y', B: c }
    secrets: [db_password]
  redis:
    command: redis-server --requirepass hunter2 --appendonly yes
    healthcheck:
      test: ["CMD", "redis-cli", "-a", "hunter3", "ping"]
  database:
    environment:
      - POSTGRES_PASSWORD=hunter4 with blanks
      - "POSTGRES_INITDB_ARGS=--data-checksums"
      - 'TOKEN=abc'
      # - POSTGRES_PASSWORD=older
      - POSTGRES_USER=postgres
    command: ["postgres", "--password", "hunter5", "-c", "x=y"]
    labels:
      traefik.http.middlewares.x.basicauth.users: admin:$$apr1$$x
secrets:
  db_password:
    file: ./db_password.txt
configs:
  login:
    content: |
      a secret
    mode: 0400
"#;
    let expected = r#"# Ünlike
name: immich
x-word: &word "<redacted by immich-backup>"
x-common: &common
  TZ: Europe/Berlin
  API_KEY: &key "<redacted by immich-backup>"
services:
  immich-server:
    image: immich-server:${IMMICH_VERSION:-release}
    environment:
      <<: *common
      DB_PASSWORD: ${DB_PASSWORD}
      DB_URL: "postgres://<redacted by immich-backup>@db/immich"
      PLAIN_URL: postgres://${U}:${P}@db/immich
      MAIL_PASSWORD: "${MAIL_PASSWORD:-<redacted by immich-backup>}" # the default
      OTHER_TOKEN: *key
      THIRD_TOKEN: *word
      LONG_SECRET: |
        <redacted by immich-backup>
      FLOW: { A_PASSWORD: "<redacted by immich-backup>", B: c }
    secrets: [db_password]
  redis:
    command: redis-server --requirepass <redacted by immich-backup> --appendonly yes
    healthcheck:
      test: ["CMD", "redis-cli", "-a", "<redacted by immich-backup>", "ping"]
  database:
    environment:
      - POSTGRES_PASSWORD=<redacted by immich-backup>
      - "POSTGRES_INITDB_ARGS=--data-checksums"
      - 'TOKEN=<redacted by immich-backup>'
      # - POSTGRES_PASSWORD=<redacted by immich-backup>
      - POSTGRES_USER=postgres
    command: ["postgres", "--password", "<redacted by immich-backup>", "-c", "x=y"]
    labels:
      traefik.http.middlewares.x.basicauth.users: "<redacted by immich-backup>"
secrets:
  db_password:
    file: ./db_password.txt
configs:
  login:
    content: |
      <redacted by immich-backup>
    mode: 0400
"#;
    let redacted = of_yaml(text);
    assert_eq!(redacted, expected);
    assert!(yaml::documents(&redacted).is_ok());
    assert_eq!(of_yaml("A_KEY: \"x\\\"y\" # c\nB: 'it''s' # PASS=x\n"), format!("A_KEY: \"{MARK}\" # c\nB: 'it''s' # PASS={MARK}\n"));
}

#[test]
fn a_variable_that_is_used_as_a_password_is_one_whatever_it_is_called() {
    let mut redactor = Redactor::default();
    redactor.learn_names("services: {db: {environment: {POSTGRES_PASSWORD: \"${PGPW:-x}\"}, x: [PGPASSWORD=$OTHER]}}");
    let redacted = redactor.variables("PGPW=hunter2\nOTHER=hunter3\nTHIRD=kept\n").unwrap();
    assert_eq!(redacted, format!("PGPW=\"\" # {MARK}\nOTHER=\"\" # {MARK}\nTHIRD=kept\n"));
    assert_eq!(redactor.count, 2);
}

#[test]
fn a_secret_that_stands_elsewhere_too_is_taken_out_there_and_a_common_word_is_not() {
    let mut redactor = Redactor::default();
    redactor.variables("DB_PASSWORD=Corr3ct-Horse\nOTHER_PASSWORD=postgres\n").unwrap();
    redactor.learn("POSTGRES_PASSWORD", "Tr0ub4dor&3");
    redactor.learn("POSTGRES_USER", "Us3r-With-Signs");
    let text = "image: postgres # it was Corr3ct-Horse, then Tr0ub4dor&3, for Us3r-With-Signs";
    assert_eq!(redactor.swept(text), format!("image: postgres # it was {MARK}, then {MARK}, for Us3r-With-Signs"));
}

#[test]
fn what_is_not_understood_has_no_copy() {
    assert!(matches!(Redactor::default().yaml("a: [1, 2\nb: }"), Err(RedactError::Yaml { .. })));
    assert!(matches!(Redactor::default().yaml("PASSWORD: hunter2\nPASSWORD: hunter3\n"), Err(RedactError::Yaml { .. })));
    let error = Redactor::default().variables("DB_PASSWORD='hunter2\n").unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn what_hides_in_values_of_harmless_names_is_found() {
    let text = "SMTP_PWD=aaaa1\nMYSQL_PWD='bbbb2'\nDISCORD_WEBHOOK=https://discord.example/api/webhooks/1/cccc3\nSAS=https://x.example/c?sv=2024&sig=dddd4%3D&se=2027\n\
                URL=\"postgres://me:ee'ee5@db/immich\"\nSIGNAL=SIGTERM\n";
    let redacted = Redactor::default().variables(text).unwrap();
    for secret in ["aaaa1", "bbbb2", "cccc3", "dddd4", "ee5"] {
        assert!(!redacted.contains(secret), "{secret} is in\n{redacted}");
    }
    assert!(redacted.contains("sv=2024") && redacted.contains("SIGNAL=SIGTERM") && redacted.contains("@db/immich"), "{redacted}");
    let text = "services:\n  one:\n    healthcheck:\n      test: curl -fs -u anna:ffff6 http://localhost/\n    command: [\"curl\", \"--user\", \"anna:gggg7\", \"http://localhost\"]\n    \
                entrypoint: setpriv -u 1000:1000 server\n    x-more: redis-server --appendonly --requirepass hhhh8\n    user: \"1000:1000\"\n    stop_signal: SIGINT\n";
    let redacted = Redactor::default().yaml(text).unwrap();
    for secret in ["ffff6", "gggg7", "hhhh8"] {
        assert!(!redacted.contains(secret), "{secret} is in\n{redacted}");
    }
    assert!(redacted.contains("-u 1000:1000 server") && redacted.contains("user: \"1000:1000\"") && redacted.contains("stop_signal: SIGINT"), "{redacted}");
}

#[test]
fn a_secret_within_a_value_that_is_none_is_found() {
    let text =
        "# before: DB_PASSWORD=aaaa1\n# export A=B: JWT_SECRET=bbbb2\nRUN=x MAIL_TOKEN=cccc3\nSERVE=note: TOKEN=dddd4\nTZ=UTC # was A=DB_PASSWORD=eeee5\n";
    let redacted = of_variables(text);
    for secret in ["aaaa1", "bbbb2", "cccc3", "dddd4", "eeee5"] {
        assert!(!redacted.contains(secret), "{secret} is in\n{redacted}");
    }
    assert!(redacted.starts_with("# before: DB_PASSWORD=<") && redacted.contains("\nTZ=UTC # was A=DB_PASSWORD=<"), "{redacted}");
    let text = "services:\n  # old: environment: PASSWORD: ffff6\n  one:\n    command: sh -c \"redis-server --port 1 --requirepass gggg7\"\n    \
                x-a: sh -c 'PGPASSWORD=hhhh8 psql'\n    x-b: 'curl -H \"X-Note: Authorization: Bearer iiii9\"'\n    x-c: run --note \"a --password jjjj0 b\"\n";
    let redacted = of_yaml(text);
    for secret in ["ffff6", "gggg7", "hhhh8", "iiii9", "jjjj0"] {
        assert!(!redacted.contains(secret), "{secret} is in\n{redacted}");
    }
    assert!(redacted.contains("--port 1 --requirepass <") && yaml::documents(&redacted).is_ok(), "{redacted}");
}

#[test]
fn a_password_between_quotes_that_are_escaped_is_found_and_the_copy_is_understood() {
    let text = concat!(
        "services:\n",
        "  one:\n",
        "    healthcheck: {test: [\"CMD-SHELL\", \"redis-cli -a \\\"hunter1 x\\\" ping && redis-cli -a \\\"${PLAIN}\\\" ping\"]}\n",
        "    command: \"export PGPASSWORD=\\\"hunter2\\\" && sh -c \\\"serve --requirepass hunter3\\\" --port 1\"\n",
        "    x-a: 'redis-cli -a ''hunter4'' ping'\n",
        "    x-b: |\n",
        "      serve --port 2 --requirepass \\\n",
        "        hunter5 --end\n",
        "    x-c: \"{\\\"password\\\": \\\"hunter6\\\", \\\"port\\\": 3}\"\n",
        "    x-d: |\n      sh -c \"curl -u \\\"anna:hunter7\\\" -H \\\"Authorization: Bearer hunter8\\\" x\"\n",
        "    x-e: \"half --password \\\"hunter9\"\n",
        "    x-f: \"run PASSWORD=\\\"\\\" PASSWORD='' x\"\n",
    );
    let copy = of_yaml(text);
    assert!(!copy.contains("hunter"), "{copy}");
    for kept in [" ping && ", "${PLAIN}", " --port 1", "serve --port 2", " --end\n", "port\\\": 3}", "PASSWORD=\\\"\\\" PASSWORD='' x"] {
        assert!(copy.contains(kept), "{kept} is gone: {copy}");
    }
    let text = "RUN=\"serve --requirepass \\\"hunter1\\\" --port 1\"\nALSO='x --password \\'hunter2\\' y'\nPORT=2\n";
    let copy = of_variables(text);
    assert!(!copy.contains("hunter") && copy.contains(" --port 1\"\n") && copy.ends_with("\nPORT=2\n"), "{copy}");
}

#[test]
fn variables_of_what_is_a_secret_as_a_whole_are_secrets_and_those_that_a_shell_replaces() {
    let compose = concat!(
        "services:\n",
        "  keycloak:\n",
        "    ports: ['$PORT:80']\n",
        "    environment:\n",
        "      API_KEYS: ['$IN_A_LIST', {one: '${IN_A_MAPPING}'}]\n",
        "      OF_A_SHELL: literal-1\n",
        "    command: sh -c 'redis-server --requirepass $$OF_A_SHELL --port $${PORT}'\n",
        "    secrets: [{source: db, target: $FOLDER/x}]\n",
        "configs: {sql: {content: \"ALTER USER i PASSWORD '${OF_A_TEXT}'\"}}\n",
    );
    let names = ["IN_A_LIST", "IN_A_MAPPING", "OF_A_SHELL", "OF_A_TEXT", "PORT", "FOLDER"];
    let text: String = names.iter().map(|name| format!("{name}=value-of-{name}\n")).collect();
    let mut redactor = Redactor::default();
    redactor.learn_names(compose);
    let copy = redactor.variables(&text).unwrap();
    let left: Vec<_> = names.iter().filter(|name| copy.contains(&format!("value-of-{name}\n"))).collect();
    assert_eq!(left, [&"PORT", &"FOLDER"], "{copy}");
    assert!(!redactor.yaml(compose).unwrap().contains("literal-1"));
}

#[test]
fn a_long_comment_of_many_names_takes_no_long_time() {
    let long = "a=b: ".repeat(100_000);
    assert_eq!(of_variables(&format!("# {long}\n# {long} PASSWORD=hunter2")), format!("# {long}\n# {long} PASSWORD={MARK}"));
}

/// Without a limit each of these takes minutes.
#[test]
fn values_within_values_without_end_take_no_long_time_and_hide_nothing() {
    for tangled in ["a=", "a: ", "?a=", ",--a="] {
        let tangled = tangled.repeat(200_000);
        for text in [format!("A='{tangled} --password hunter2'\n"), format!("A={}PASSWORD=hunter2\n", tangled.replace(' ', ""))] {
            assert!(!of_variables(&text).contains("hunter2"));
        }
        assert!(!of_yaml(&format!("x: |\n  {tangled} --password hunter2\n")).contains("hunter2"));
    }
}

#[test]
fn a_value_behind_blanks_is_empty_in_the_copy() {
    for blanks in [" ", "\t ", "\u{a0}"] {
        let text = format!("A=1\nDB_PASSWORD={blanks}hunter2\n# TOKEN={blanks}hunter3\n");
        let redacted = of_variables(&text);
        assert_eq!(redacted, format!("A=1\nDB_PASSWORD={blanks}\"\" # {MARK}\n# TOKEN={blanks}{MARK}\n"));
        let mut read = variables::Variables::new();
        variables::read(&redacted, &mut read).unwrap();
        assert_eq!(read["DB_PASSWORD"], "");
    }
}

#[test]
fn a_secret_that_yaml_takes_for_a_mapping_is_taken_out_with_its_keys() {
    let text = "labels:\n  MY_TOKEN:\n    - hunter: two # kept\n    - { hunter3: 'x', hunter4: y }\n  LAST: 1\nenvironment:\n  - DB_PASSWORD=hunter5: six\n  \
                - PGPASSWORD=hunter6\ncommand: [serve, --password, hunter7: eight]\nx-key:\n  ? [hunter8, nine]\n  : hunter9\n";
    let redacted = of_yaml(text);
    for text in ["P: a\nPASSWORD: !hunter2\n", "PASSWORD: &hunter2 x\n", "PASSWORD: !hunter2 {a: b}\n", "PASSWORD: [!hunter2 x, !!str y, &hunter3]\n"] {
        let redacted = of_yaml(text);
        assert!(!redacted.contains("hunter") && yaml::documents(&redacted).is_ok(), "{redacted}");
    }
    assert!(!redacted.contains("hunter") && !redacted.contains("six") && !redacted.contains("eight") && !redacted.contains("nine"), "{redacted}");
    assert!(
        redacted.contains("MY_TOKEN:\n    - \"") && redacted.contains("# kept") && redacted.contains("  LAST: 1\n") && redacted.contains("DB_PASSWORD="),
        "{redacted}"
    );
    assert!(yaml::documents(&redacted).is_ok(), "{redacted}");
}

#[test]
fn what_people_called_a_service_a_network_or_a_volume_is_no_secret() {
    let text = "services:\n  keycloak:\n    image: keycloak:26\n    environment:\n      KC_PASSWORD: \"<redacted by immich-backup>\"\n    networks: [auth]\n\
                networks:\n  auth:\n    driver: bridge\nvolumes:\n  token-store:\n    name: tokens\n";
    assert_eq!(of_yaml(&text.replace("\"<redacted by immich-backup>\"", "hunter2")), text);
    // What describes nothing is none.
    assert_eq!(of_yaml("services:\n  PASSWORD: hunter2\n"), format!("services:\n  PASSWORD: \"{MARK}\"\n"));
}

/// Names that say that they are secret.
fn secret_name() -> impl Strategy<Value = String> {
    let parts = ("[A-Z_]{0,6}", prop::sample::select(WORDS.to_vec()), "[A-Z0-9_]{0,6}", any::<bool>());
    parts.prop_map(|(before, word, after, lower)| {
        let name = format!("X{before}{word}{after}");
        if lower { name.to_lowercase() } else { name }
    })
}

/// A value that begins and ends with what stands nowhere else, and has anything between.
fn value() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9!%&*+,./:;<=>?@^_|~ -]{0,12}".prop_map(|middle| format!("Zq7{middle}wX9"))
}

fn has_left(text: &str) -> bool {
    text.contains("Zq7") || text.contains("wX9")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_value_of_a_secret_name_survives_in_a_file_of_variables(
        name in secret_name(), value in value(), quote in prop::sample::select(vec!["", "'", "\""]),
        before in "(# [a-z ]{0,9}\n|[A-D]{1,5}=[a-z]{0,4}\n|\n){0,3}", export in any::<bool>(), comment in prop::sample::select(vec!["", "# ", "# b: ", "# a=", "# a=b: "]),
        blank in "[ \t]{0,2}",
    ) {
        let line = format!("{}{name}={blank}{quote}{value}{quote}\n", if export { "export " } else { "" });
        let text = format!("{before}{comment}{line}LAST=1\n");
        if let Ok(redacted) = Redactor::default().variables(&text) {
            prop_assert!(!has_left(&redacted), "{text}\n{redacted}");
            prop_assert!(redacted.starts_with(&before) && redacted.ends_with("LAST=1\n"), "{redacted}");
        }
    }

    #[test]
    fn no_value_of_a_secret_name_survives_in_yaml(
        name in secret_name(), value in value(), quote in prop::sample::select(vec!["", "'", "\""]), form in 0..13,
    ) {
        let quoted = format!("{quote}{value}{quote}");
        let body = match form {
            0 => format!("environment:\n      {name}: {quoted}\n      KEPT: 1\n"),
            1 => format!("environment:\n      - {quote}{name}={value}{quote}\n      - KEPT=1\n"),
            2 => format!("environment: {{ {name}: '{value}', KEPT: 1 }}\n"),
            3 => format!("environment:\n      {name}: |\n        {value}\n        {value}\n      KEPT: 1\n"),
            4 => format!("environment:\n      KEPT: 1 # {name}: {quoted}\n"),
            5 => format!("command: [\"server\", \"--{name}\", \"{value}\", \"KEPT\"]\n"),
            6 => format!("environment:\n      U: 'postgres://me:{}@db/KEPT'\n", value.replace([' ', '@'], "")),
            7 => format!("labels:\n      {name}:\n        - {quoted}\n        - {{ a: '{value}' }}\n      KEPT: 1\n"),
            8 => format!("labels:\n      {name}:\n        {quoted}: {quoted}\n        b: {{ {quoted}: [{quoted}] }}\n      KEPT: 1\n"),
            9 => format!("command: [\"server\", --{name}, {}: 1, \"KEPT\"]\n", quoted.replace(',', "")),
            10 => format!("environment:\n      {name}: !{quoted}\n      KEPT: 1\n"),
            11 => format!("environment:\n      {name}: &{value}\n      KEPT: 1\n"),
            _ => format!("command: run --{name}={} KEPT\n", value.replace([' ', '#'], "")),
        };
        let text = format!("services:\n  one:\n    {body}    image: x\n");
        if let Ok(redacted) = Redactor::default().yaml(&text) {
            prop_assert!(!has_left(&redacted), "{text}\n{redacted}");
            prop_assert!(redacted.contains("KEPT") && redacted.ends_with("    image: x\n"), "{text}\n{redacted}");
        }
    }
}
