# Managed by Saltern: _modules/pages.py. The site's own pages, as it was shipped last.
sub {{ label }}_failed {
}
sub {{ label }}_synth {
}
