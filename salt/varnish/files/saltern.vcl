# Managed by Saltern: salt/varnish/files/saltern.vcl. Change pillar overrides, not this file.
vcl 4.1;

import directors;
import std;
{%- set varnish = salt['settings.get']('varnish') %}
{%- set apps = salt['inventory.peers']('app') %}
{%- set sites = salt['sites.list']() %}

backend nobody none;
{% for name in sites %}
{%- set site = salt['sites.get'](name) %}
{%- set label = name | regex_replace('[^A-Za-z0-9]', '_') %}
probe {{ label }} {
    .request =
        "GET {{ site.health }} HTTP/1.1"
        "Host: {{ site.domains[0] }}"
        "User-Agent: varnish-probe"
        "Connection: close";
    .interval = {{ varnish.probe.interval }};
    .timeout = {{ varnish.probe.timeout }};
    .window = {{ varnish.probe.window }};
    .threshold = {{ varnish.probe.threshold }};
    .initial = {{ varnish.probe.threshold - 1 }};
}
{%- for host in apps %}
backend {{ label }}_{{ host.id | regex_replace('[^A-Za-z0-9]', '_') }} {
    .host = "{{ host.address }}";
    .port = "80";
    .connect_timeout = 2s;
    .first_byte_timeout = 60s;
    .probe = {{ label }};
}
{%- endfor %}
{% endfor %}
acl balancers {
    "localhost";
{%- for host in salt['inventory.peers']('loadbalancer') %}
    "{{ host.address }}";
{%- endfor %}
}

acl purgers {
    "localhost";
{%- for host in apps + salt['inventory.peers']('worker') %}
    "{{ host.address }}";
{%- endfor %}
}

sub vcl_init {
{%- for name in sites %}
{%- set label = name | regex_replace('[^A-Za-z0-9]', '_') %}
    new {{ label }} = directors.round_robin();
{%- for host in apps %}
    {{ label }}.add_backend({{ label }}_{{ host.id | regex_replace('[^A-Za-z0-9]', '_') }});
{%- endfor %}
{%- endfor %}
    return (ok);
}

sub vcl_recv {
    if (req.url == "/.saltern/varnish") {
        return (synth(200, "OK"));
    }
    # Which site is asked for? A name that nobody knows gets no answer from a site.
{%- for name in sites %}
    {{ 'if' if loop.first else 'elseif' }} (req.http.Host ~ "(?i)^({{ salt['sites.get'](name).domains | map('regex_escape') | join('|') }})(:\d+)?$") {
        set req.backend_hint = {{ name | regex_replace('[^A-Za-z0-9]', '_') }}.backend();
    }
{%- endfor %}
    {{ 'else' if sites else 'if (true)' }} {
        return (synth(404, "No such site"));
    }
    set req.http.Host = regsub(req.http.Host, ":\d+$", "");

    if (req.method == "PURGE") {
        if (std.ip(client.ip, "0.0.0.0") !~ purgers) {
            return (synth(405, "Not allowed"));
        }
        return (purge);
    }
    if (req.method !~ "^(GET|HEAD)$") {
        return (pass);
    }
    if (req.http.Authorization || req.http.Cookie ~ "(^|;\s*){{ varnish.session_cookie }}=") {
        return (pass);
    }
    if (req.url ~ "[?&]{{ varnish.bypass_parameter }}(=|&|$)") {
        return (pass);
    }
    # Anonymous: whatever cookies there are say nothing that changes the page.
    unset req.http.Cookie;
    # One page is kept for all clients; the site's answer says whether it was packed.
    if (std.healthy(req.backend_hint)) {
        set req.grace = {{ varnish.grace_healthy }};
    }
    return (hash);
}

sub vcl_backend_response {
    set beresp.grace = {{ varnish.grace }};
    if (bereq.uncacheable) {
        return (deliver);
    }
    # A failing site must not push a good page out: give up the fetch and serve what there is.
    if (beresp.status >= 500 && bereq.is_bgfetch) {
        return (abandon);
    }
    if (beresp.http.Set-Cookie || beresp.http.Vary ~ "(?i)cookie|\*" || beresp.http.Cache-Control ~ "(?i)private|no-cache|no-store") {
        set beresp.uncacheable = true;
        set beresp.ttl = 120s;
        return (deliver);
    }
    if (beresp.status >= 500) {
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        set beresp.uncacheable = true;
        return (deliver);
    }
    if (!beresp.http.Cache-Control && !beresp.http.Expires) {
        set beresp.ttl = {{ varnish.ttl }};
    }
    return (deliver);
}

sub vcl_deliver {
    if (obj.hits > 0) {
        set resp.http.X-Cache = "hit";
    } else {
        set resp.http.X-Cache = "miss";
    }
}

sub vcl_synth {
    if (req.url == "/.saltern/varnish") {
        set resp.http.Content-Type = "text/plain";
        set resp.body = {"OK
"};
        return (deliver);
    }
    set resp.http.Content-Type = "text/html; charset=utf-8";
    set resp.body = {"<!doctype html><title>"} + resp.status + {"</title><h1>"} + resp.reason + {"</h1>
"};
    return (deliver);
}

sub vcl_backend_error {
    set beresp.http.Content-Type = "text/html; charset=utf-8";
    set beresp.http.Retry-After = "5";
    set beresp.body = {"<!doctype html><title>Back in a moment</title><h1>Back in a moment</h1><p>The site can't answer right now. Please try again shortly.</p>
"};
    return (deliver);
}
