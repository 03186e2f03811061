# What a host gets whose settings are wrong: one failure for each mistake, and nothing else.
{%- for sentence in salt['settings.errors']() %}
refused/{{ loop.index }}:
  test.fail_without_changes:
    - name: settings
    - comment: {{ sentence | json }}
{%- endfor %}
