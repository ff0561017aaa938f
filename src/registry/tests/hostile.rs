//! The parsers of what servers and files say, on arbitrary input.

use proptest::prelude::*;
use registry::challenge::{Challenge, parse};
use registry::{AuthFile, RegistriesConf, RegistryError};

proptest! {
    #[test]
    fn challenges_never_panic(header in any::<String>(), like in "((Basic|Bearer|[a-z]{1,5})?[ ,]*([a-z]{1,6} ?= ?(\"[^\"]{0,9}\"?|[a-z]{0,5}))?[,= \"]{0,3}){0,6}") {
        parse(&header);
        parse(&like);
    }

    #[test]
    fn a_quoted_realm_comes_back_whole(realm in "[ -~]{0,40}") {
        let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
        let found = parse(&format!("Bearer realm=\"{quoted}\",service=s"));
        prop_assert_eq!(found, vec![Challenge::Bearer { realm, service: Some("s".to_owned()), scope: None }]);
    }

    #[test]
    fn credential_files_never_panic(bytes in any::<Vec<u8>>(), auth in "[A-Za-z0-9+/=]{0,24}", host in "[a-z0-9./:]{0,20}") {
        let _ = AuthFile::parse(&bytes);
        let json = format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
        if let Ok(file) = AuthFile::parse(json.as_bytes()) {
            let _ = file.credential(&host, "a/b");
        }
    }

    #[test]
    fn files_of_registries_never_panic(
        any in any::<String>(),
        place in "[a-z0-9.:/*@ä]{0,12}",
        prefix in "(\\*\\.)?[a-z0-9.:/]{0,12}",
        name in "[a-z0-9.:/@]{1,16}",
    ) {
        let table = format!("[[registry]]\nprefix = '{prefix}'\nlocation = '{place}'\n[[registry.mirror]]\nlocation = '{place}'");
        let search = format!("unqualified-search-registries = ['{place}']\n[aliases]\n'{name}' = '{place}'");
        for text in [&any, &table, &search] {
            let mut conf = RegistriesConf::default();
            match conf.add("file", text) {
                Ok(()) => {}
                Err(RegistryError::Conf { line, .. }) => prop_assert!((1..=text.lines().count() + 1).contains(&line)),
                Err(other) => panic!("{other}"),
            }
            for reference in conf.candidates(&name).into_iter().flatten() {
                prop_assert!(conf.endpoints(&reference).map_or(true, |places| !places.is_empty()));
            }
        }
    }
}
