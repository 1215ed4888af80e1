//! What the demo says on the terminal.

use std::path::Path;

use super::Places;

#[expect(clippy::print_stdout, reason = "this text is the demo's output")]
pub fn print(places: &Places, config: &Path, directory: &Path) {
    let Places {
        hello,
        engineering,
        public,
        ..
    } = places;
    println!(
        "
Postern is running. Open

    {hello}

The browser will warn about the certificate: the demo made its authority a moment ago. Accept it,
or trust {authority}.

Sign in as Ann, Bob or Eve; there are no passwords. Then try
    {engineering}    only the group eng may: Ann, not Bob
    {public}         everybody may, signed in or not
    {hello}/.pomerium/    who you are, and the way out
    curl --cacert {authority} -H 'Accept: application/json' {hello}/    a program gets 401 and JSON

Edit {config}; changes take effect as you save.
Logs are in {directory}. Ctrl-C ends it.
",
        authority = places.certificates.authority.display(),
        config = config.display(),
        directory = directory.display(),
    );
}
