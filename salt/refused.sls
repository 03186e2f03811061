# What a host gets whose settings are wrong: one failure for each mistake, and nothing else. The
# sentence is the name, as that is shown with test=True, too.
{%- for sentence in salt['settings.errors']() %}
refused/{{ loop.index }}:
  test.fail_without_changes:
    - name: {{ sentence | json }}
{%- endfor %}
