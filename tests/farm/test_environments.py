"""Environments: what differs outside production, on the farm."""

HOST = {"Host": "newsroom.lab"}


def test_search_engines_are_told_to_stay_away(lab):
    answer = lab.get("http://lb1/", headers=HOST)
    assert answer.headers["x-robots-tag"] == "noindex, nofollow"
    refused = lab.get("http://lb1/.saltern/varnish", headers=HOST)
    assert refused.status == 403
    assert refused.headers["x-robots-tag"] == "noindex, nofollow"


def test_mail_is_caught(lab):
    send = (
        "from django.core.mail import send_mail; send_mail('caught', 'text', None, ['a@b.example'])"
    )
    told = lab.salt("app1", "deploy.manage", "newsroom", f'shell -c "{send}"')["app1"]
    assert "Subject: caught" in told


def test_a_ship_for_another_environment_does_nothing_and_says_so(lab):
    before = lab.salt("app*", "deploy.status")
    told = lab.salt("app*", "deploy.ship", "environment=lab", "until=fetch")
    assert all(report["result"] for report in told.values())
    wrong = lab.salt("app1", "deploy.ship", "environment=production")["app1"]
    assert "There is no environment 'production'. There are lab." in str(wrong)
    after = lab.salt("app*", "deploy.status")
    assert {h: s["newsroom"]["live"] for h, s in after.items()} == {
        h: s["newsroom"]["live"] for h, s in before.items()
    }
