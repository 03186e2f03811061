# The only state of a host that can't be set up: nothing is done, and it is said why.
{%- set sync = 'This host has none of the tree\'s modules yet: salt ' ~ grains.id ~ ' saltutil.sync_all' %}
{%- set why = salt['settings.refusal']() if 'settings.refusal' in salt else sync %}

refused:
  test.fail_without_changes:
    - name: {{ why | json }}
