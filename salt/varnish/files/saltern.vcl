# Managed by Saltern: salt/varnish/files/saltern.vcl. Change pillar overrides, not this file.
vcl 4.1;

import directors;
import std;
{%- from 'os/files/error_page.jinja' import page %}
{%- set varnish = salt['settings.get']('varnish') %}
{%- set apps = salt['inventory.peers']('app') %}
{%- set nginx_port = salt['settings.get']('nginx').port %}
{%- set sites = [] %}
{%- for name in salt['sites.list']() %}
{%- set site = salt['sites.get'](name) %}
{%- do site.update({'label': name | regex_replace('[^A-Za-z0-9]', '_')}) %}
{%- do sites.append(site) %}
{%- endfor %}
{%- macro backend_name(site, host) -%}
{{ site.label }}__{{ host.id | regex_replace('[^A-Za-z0-9]', '_') }}
{%- endmacro %}
{%- macro is_host(request, domains) -%}
{% for domain in domains %}{{ ' || ' if not loop.first }}{{ request }}.http.Host == "{{ domain | lower }}"{% endfor %}
{%- endmacro %}

{%- for site in sites %}
# The site's own pages.
include "/etc/varnish/pages/{{ site.name }}.vcl";
{%- endfor %}

backend nobody none;
{% for site in sites if apps %}
probe {{ site.label }}_probe {
    .request =
        "GET {{ site.health }} HTTP/1.1"
        "Host: {{ site.domains[0] }}"
        "User-Agent: varnish-probe"
{%- if site.tls.force %}
        "X-Forwarded-Proto: https"
{%- endif %}
        "Connection: close";
    .interval = {{ varnish.probe.interval }};
    .timeout = {{ varnish.probe.timeout }};
    .window = {{ varnish.probe.window }};
    .threshold = {{ varnish.probe.threshold }};
    .initial = {{ varnish.probe.threshold - 1 }};
}
{%- for host in apps %}
backend {{ backend_name(site, host) }} {
    .host = "{{ host.address }}";
    .port = "{{ nginx_port }}";
    .connect_timeout = 1s;
    .first_byte_timeout = 65s;
    .probe = {{ site.label }}_probe;
}
{%- endfor %}
{% endfor %}
acl purgers {
    "localhost";
{%- for host in salt['inventory.all']() %}
    "{{ host.address }}";
{%- endfor %}
{%- for network in varnish.purgers %}
    "{{ network.split('/')[0] }}"{{ '/' ~ network.split('/')[1] if '/' in network }};
{%- endfor %}
}

sub vcl_init {
{%- for site in sites %}
    new {{ site.label }}_apps = directors.shard();
{%- for host in apps %}
    {{ site.label }}_apps.add_backend({{ backend_name(site, host) }});
{%- endfor %}
    {{ site.label }}_apps.reconfigure();
{%- endfor %}
    return (ok);
}

sub vcl_recv {
    # The balancer asks whether this accelerator lives.
    if (req.url == "/.saltern/varnish") {
        return (synth(200, "OK"));
    }
    if (req.restarts == 0) {
        unset req.http.X-Saltern-Old;
        unset req.http.X-Saltern-Failed;
        unset req.http.X-Saltern-Cache;
        unset req.http.X-Saltern-Encoding;
        if (!req.http.X-Forwarded-Proto) {
            set req.http.X-Forwarded-Proto = "http";
        }
    }
    set req.http.Host = std.tolower(regsub(req.http.Host, ":\d+$", ""));

    # Which site is asked for? A name that nobody knows gets no answer from a site.
{%- for site in sites %}
    {{ 'if' if loop.first else 'elseif' }} ({{ is_host('req', site.domains) }}) {
        set req.backend_hint = {{ site.label }}_apps.backend(resolve=LAZY);
        call {{ site.label }}_recv;
    }
{%- if site.redirect_domains %}
    elseif ({{ is_host('req', site.redirect_domains) }}) {
        return (synth(301, {{ '"https' if site.tls.force else 'req.http.X-Forwarded-Proto + "' }}://{{ site.domains[0] }}" + req.url));
    }
{%- endif %}
{%- endfor %}
{%- if sites %}
    else {
        return (synth(404, "Not Found"));
    }
{%- else %}
    return (synth(404, "Not Found"));
{%- endif %}

    if (req.method == "PURGE" || req.method == "BAN") {
        if (client.ip !~ purgers) {
            return (synth(405, "Method Not Allowed"));
        }
        if (req.method == "PURGE") {
            return (purge);
        }
        if (std.ban("obj.http.X-Saltern-Host == " + req.http.Host + " && obj.http.X-Saltern-Url ~ " + req.http.X-Ban-Pattern)) {
            return (synth(200, "Banned"));
        }
        return (synth(400, std.ban_error()));
    }
    if (req.method != "GET" && req.method != "HEAD") {
        return (pass);
    }
    if (req.http.Authorization) {
        return (pass);
    }
    if (req.url ~ "\?") {
        if (req.url ~ "[?&]{{ varnish.bypass_parameter }}(=|&|$)") {
            return (pass);
        }
{%- if varnish.ignored_parameters %}
        set req.url = regsuball(req.url, "([?&])({{ varnish.ignored_parameters | join('|') }})(=[^&]*)?(?=&|$)", "\1");
        set req.url = regsub(regsuball(regsub(req.url, "\?&+", "?"), "&{2,}", "&"), "[?&]+$", "");
{%- endif %}
        set req.url = std.querysort(req.url);
    }
    # Anonymous: whatever cookies there are say nothing that changes the page.
    unset req.http.Cookie;
    # A page that is too old for a site that is well: fetch it, and remember that there is an old
    # one to fall back on.
    set req.grace = {{ varnish.grace }};
    if (req.http.X-Saltern-Old && !req.http.X-Saltern-Failed) {
        set req.grace = {{ varnish.grace_healthy }};
    }
    return (hash);
}
{% for site in sites %}
sub {{ site.label }}_recv {
{%- for old, new in site.redirects | dictsort %}
    if (req.url ~ "^{{ old | regex_escape }}(\?|$)") {
        return (synth(301, {{ '' if '://' in new else ('"https://"' if site.tls.force else 'req.http.X-Forwarded-Proto + "://"') ~ ' + req.http.Host + ' }}"{{ new }}" + regsub(req.url, "^[^?]*", "")));
    }
{%- endfor %}
{%- set served = [site.static_url, site.media_url] | select('match', '/.+') | map('regex_escape') | join('|') %}
{%- if served %}
    if (req.url ~ "^({{ served }})") {
        # Files are kept packed both ways, where the site has them so.
        if (req.http.Accept-Encoding ~ "\bbr\b") {
            set req.http.X-Saltern-Encoding = "br";
        }
        # They are the same for every visitor.
        unset req.http.Cookie;
    }
{%- endif %}
{%- if site.cache.early_404 and varnish.foreign_files %}
    {{ 'else' if served }}if (req.url ~ "(?i)^[^?]*\.({{ varnish.foreign_files | join('|') }})(\?|$)" && (req.method == "GET" || req.method == "HEAD")) {
        return (synth(404, "Not Found"));
    }
{%- endif %}
    if (req.http.Cookie ~ "(^|;\s*){{ site.cache.session_cookie }}=") {
        return (pass);
    }
}
{% endfor %}
sub vcl_pass {
    set req.http.X-Saltern-Cache = "pass";
}

sub vcl_hit {
    # While a site is well, its pages may be a little old, until a fresh one has come. Where its
    # hosts are down or an answer has just failed, any page that is still kept is better than none.
    if (obj.ttl + {{ varnish.grace_healthy }} < 0s && !req.http.X-Saltern-Old && std.healthy(req.backend_hint)) {
        set req.http.X-Saltern-Old = "yes";
        return (restart);
    }
}

sub vcl_miss {
    # The site has just failed to answer this, and the old page is gone meanwhile.
    if (req.http.X-Saltern-Failed) {
        return (synth(503, "Back in a moment"));
    }
}

sub vcl_backend_fetch {
    # Requests are spread by their names. One that is tried again goes to another host than before.
{%- for site in sites if apps %}
    if ({{ is_host('bereq', site.domains) }}) {
        set bereq.backend = {{ site.label }}_apps.backend(by=KEY, key={{ site.label }}_apps.key(bereq.http.X-Request-ID + bereq.url), alt=bereq.retries);
    }
{%- endfor %}
    # A connection of its own: one that was kept to a host that has died since would wait in vain.
    set bereq.http.Connection = "close";
    if (bereq.http.X-Saltern-Encoding && !bereq.uncacheable) {
        set bereq.http.Accept-Encoding = bereq.http.X-Saltern-Encoding;
    }
}

sub vcl_backend_response {
    set beresp.grace = {{ varnish.grace }};
    set beresp.http.X-Saltern-Host = bereq.http.Host;
    set beresp.http.X-Saltern-Url = bereq.url;
    # One host's app server is gone: another host's may be there.
    if (beresp.status == 502 && (bereq.method == "GET" || bereq.method == "HEAD") && bereq.retries < 2) {
        return (retry);
    }
    # A failing site must not push a good page out: give up the fetch and serve what there is.
    if (beresp.status >= 500 && (bereq.is_bgfetch || bereq.http.X-Saltern-Old)) {
        return (abandon);
    }
    if (beresp.status >= 500) {
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        set beresp.uncacheable = true;
        return (deliver);
    }
    if (bereq.uncacheable) {
        return (deliver);
    }
    if (beresp.http.Set-Cookie || beresp.http.Vary ~ "(?i)cookie|\*" || beresp.http.Cache-Control ~ "(?i)(private|no-cache|no-store)"
        || std.integer(beresp.http.Content-Length, 0) > {{ varnish.largest.bytes }}) {
        set beresp.uncacheable = true;
        set beresp.ttl = 120s;
        return (deliver);
    }
    if (beresp.ttl > 0s && beresp.http.Cache-Control !~ "(?i)(s-maxage|max-age)" && !beresp.http.Expires) {
        set beresp.ttl = {{ varnish.ttl }};
    }
    if (beresp.ttl <= 0s) {
        set beresp.uncacheable = true;
        set beresp.ttl = 120s;
        return (deliver);
    }
    # Kept apart for each way to ask, but under one name, so that a PURGE finds them all.
    if (bereq.http.X-Saltern-Encoding) {
        call vary_encoding;
    }
{%- for site in sites if site.tls.certificate != 'none' and not site.tls.force %}
    if ({{ is_host('bereq', site.domains) }}) {
        call vary_scheme;
    }
{%- endfor %}
{%- for site in sites if site.cache.esi %}
    if (({{ is_host('bereq', site.domains) }}) && beresp.http.Content-Type ~ "^text/html") {
        set beresp.do_esi = true;
    }
{%- endfor %}
    return (deliver);
}

sub vary_encoding {
    if (beresp.http.Vary) {
        set beresp.http.Vary = beresp.http.Vary + ", X-Saltern-Encoding";
    } else {
        set beresp.http.Vary = "X-Saltern-Encoding";
    }
}
{% if sites | rejectattr('tls.certificate', 'equalto', 'none') | rejectattr('tls.force') | list %}
sub vary_scheme {
    if (beresp.http.Vary) {
        set beresp.http.Vary = beresp.http.Vary + ", X-Forwarded-Proto";
    } else {
        set beresp.http.Vary = "X-Forwarded-Proto";
    }
}
{% endif %}
sub vcl_backend_error {
    # The host was not there, or went away: ask another one, as long as asking changes nothing.
    if ((bereq.method == "GET" || bereq.method == "HEAD") && bereq.retries < 2) {
        return (retry);
    }
    if (bereq.is_bgfetch || bereq.http.X-Saltern-Old) {
        return (abandon);
    }
    set beresp.http.Content-Type = "text/html; charset=utf-8";
    set beresp.http.Cache-Control = "no-store";
    set beresp.http.Retry-After = "5";
{%- for site in sites %}
    if ({{ is_host('bereq', site.domains) }}) {
        call {{ site.label }}_failed;
    }
{%- endfor %}
    set beresp.body = {"{{ page(503) }}
"};
    return (deliver);
}

sub vcl_deliver {
    if (req.http.X-Saltern-Cache) {
        set resp.http.X-Cache = req.http.X-Saltern-Cache;
    } elseif (obj.hits == 0) {
        set resp.http.X-Cache = "miss";
    } elseif (obj.ttl < 0s) {
        set resp.http.X-Cache = "stale";
    } else {
        set resp.http.X-Cache = "hit";
    }
    if (resp.http.Vary ~ "X-Saltern|X-Forwarded-Proto") {
        set resp.http.Vary = regsub(regsuball(resp.http.Vary, "(^|, )(X-Saltern-Encoding|X-Forwarded-Proto)", ""), "^, ", "");
        if (resp.http.Vary == "") {
            unset resp.http.Vary;
        }
    }
    unset resp.http.X-Saltern-Host;
    unset resp.http.X-Saltern-Url;
    unset resp.http.X-Varnish;
    unset resp.http.Via;
}

sub vcl_synth {
    # The fetch failed or was given up: the old page, then.
    if (resp.status == 503 && req.http.X-Saltern-Old && !req.http.X-Saltern-Failed) {
        set req.http.X-Saltern-Failed = "yes";
        return (restart);
    }
    if (resp.status == 301) {
        set resp.http.Location = resp.reason;
        set resp.reason = "Moved Permanently";
        set resp.http.Cache-Control = "max-age=3600";
        set resp.body = "";
        return (deliver);
    }
    set resp.http.X-Cache = "synth";
    set resp.http.Cache-Control = "no-store";
    if (resp.status < 300 || resp.status == 400) {
        set resp.http.Content-Type = "text/plain; charset=utf-8";
        set resp.body = resp.reason + {"
"};
        return (deliver);
    }
    set resp.http.Content-Type = "text/html; charset=utf-8";
    if (resp.status == 503) {
        set resp.http.Retry-After = "5";
    }
{%- for site in sites %}
    if ({{ is_host('req', site.domains) }}) {
        call {{ site.label }}_synth;
    }
{%- endfor %}
    if (resp.status == 404) {
        set resp.body = {"{{ page(404) }}
"};
    } elseif (resp.status == 405) {
        set resp.http.Allow = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
        set resp.body = {"{{ page(403) }}
"};
    } else {
        set resp.http.Retry-After = "5";
        set resp.body = {"{{ page(503) }}
"};
    }
    return (deliver);
}
