# Where a site's releases live and what it is told: users, folders, environment, build tools.
# The releases themselves are `deploy`'s business.
{%- set django = salt['settings.get']('django') %}

django/packages:
  pkg.installed:
    - pkgs: {{ django.packages | json }}

{%- if django.uv %}

# In a virtualenv of its own: it belongs to no site.
django/uv:
  cmd.run:
    - name: >-
        python3 -m venv /opt/saltern/uv &&
        /opt/saltern/uv/bin/python -m pip install --quiet --disable-pip-version-check
        uv=={{ django.uv }}
    - unless: /opt/saltern/uv/bin/uv --version | grep --quiet '^uv {{ django.uv }}'
    - require:
      - pkg: django/packages
{%- endif %}

django/root:
  file.directory:
    - name: {{ django.root }}
    - mode: '0755'
    - makedirs: True
{% for name in salt['sites.list']() %}
{%- set paths = salt['sites.paths'](name) %}
{%- set user = salt['sites.user'](name) %}
{%- set builder = salt['sites.builder'](name) %}
# Runs the site: reads its releases, writes its uploads, nothing else.
django/{{ name }}/user:
  user.present:
    - name: {{ user }}
    - system: True
    - usergroup: True
    - home: {{ paths.shared }}
    - createhome: False
    - shell: /usr/sbin/nologin

# Builds the site's releases: owns the code, so that the running site can't change it.
django/{{ name }}/builder:
  user.present:
    - name: {{ builder }}
    - system: True
    - usergroup: True
    - groups: [{{ user }}]
    - home: {{ paths.build }}
    - createhome: False
    - shell: /usr/sbin/nologin
    - require:
      - user: django/{{ name }}/user

# What root itself writes: which release is live, its history. The builder has no say in it.
django/{{ name }}/root:
  file.directory:
    - names:
      - {{ paths.root }}
      - {{ paths.deploy }}
    - user: root
    - group: root
    - mode: '0755'
    - require:
      - file: django/root

# Its caches are nobody else's: tools leave files there that a group may write.
django/{{ name }}/build:
  file.directory:
    - name: {{ paths.build }}
    - user: {{ builder }}
    - group: {{ user }}
    - mode: '0700'
    - require:
      - user: django/{{ name }}/builder
      - file: django/{{ name }}/root

django/{{ name }}/folders:
  file.directory:
    - names:
      - {{ paths.releases }}
      - {{ paths.repo }}
      - {{ paths.virtualenvs }}
      - {{ paths.static }}
      - {{ paths.pages }}
    - user: {{ builder }}
    - group: {{ user }}
    - mode: '0755'
    - makedirs: True
    - require:
      - user: django/{{ name }}/builder
      - file: django/{{ name }}/root

django/{{ name }}/shared:
  file.directory:
    - name: {{ paths.shared }}
    - user: root
    - group: {{ user }}
    - mode: '0755'
    - require:
      - file: django/{{ name }}/folders

django/{{ name }}/media:
  file.directory:
    - name: {{ paths.media }}
    - user: {{ user }}
    - group: {{ user }}
    - mode: '0755'
    - require:
      - file: django/{{ name }}/shared

django/{{ name }}/environment:
  file.managed:
    - name: {{ paths.env_file }}
    - source: salt://django/files/env
    - template: jinja
    - context:
        name: {{ name }}
    - user: root
    - group: {{ user }}
    - mode: '0640'
    - show_changes: False
    - require:
      - file: django/{{ name }}/shared

# A new host gets what is live on the others, once all else is there.
django/{{ name }}/joined:
  deploy.joined:
    - name: {{ name }}
    - order: last
{% endfor %}
