"""What may be written after --store, and what is said of the rest."""

import pytest

from control.etcd.url import BadStoreUrl, EtcdOptions, Tls, parse_url


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("etcd://10.0.0.1:2379/meshd", EtcdOptions(("10.0.0.1:2379",), "/meshd")),
        ("etcd://10.0.0.1/meshd/", EtcdOptions(("10.0.0.1:2379",), "/meshd")),
        ("etcd://a,b:1,c.example.org:65535/x/y", EtcdOptions(("a:2379", "b:1", "c.example.org:65535"), "/x/y")),
        ("etcd://[::1]:2379,[fd00::2]/m", EtcdOptions(("[::1]:2379", "[fd00::2]:2379"), "/m")),
        ("etcd://a/m?ttl=10", EtcdOptions(("a:2379",), "/m", None, 10)),
        ("etcds://a/m", EtcdOptions(("a:2379",), "/m", Tls())),
        (
            "etcds://a/m?ca=/etc/ca.pem&cert=/etc/c.pem&key=/etc/k.pem",
            EtcdOptions(("a:2379",), "/m", Tls("/etc/ca.pem", "/etc/c.pem", "/etc/k.pem")),
        ),
    ],
)
def test_good(text, options):
    assert parse_url(text) == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'the store "" must begin with etcd:// or etcds://'),
        ("http://a:2379/m", 'the store "http://a:2379/m" must begin with etcd:// or etcds://'),
        ("a:2379", 'the store "a:2379" must begin with etcd:// or etcds://'),
        (
            "etcd://a:2379",
            'the store "etcd://a:2379" needs a prefix that no other cluster uses, like etcd://a:2379/meshd',
        ),
        ("etcd://a/", 'the store "etcd://a/" needs a prefix that no other cluster uses, like etcd://a/meshd'),
        ("etcd:///m", 'the store "etcd:///m" has no host name or address where "" is'),
        ("etcd://a,,b/m", 'the store "etcd://a,,b/m" has no host name or address where "" is'),
        ("etcd://a:0/m", 'the store "etcd://a:0/m" has a bad port in "a:0"'),
        ("etcd://a:99999/m", 'the store "etcd://a:99999/m" has a bad port in "a:99999"'),
        ("etcd://a:b/m", 'the store "etcd://a:b/m" has a bad port in "a:b"'),
        ("etcd://-a/m", 'the store "etcd://-a/m" has no host name or address where "-a" is'),
        ("etcd://a,a:2379/m", 'the store "etcd://a,a:2379/m" names a host twice'),
        ("etcd://" + ",".join(f"h{i}" for i in range(17)) + "/m", "names more than 16 hosts"),
        ("etcd://[::1/m", "is no URL: Invalid IPv6 URL"),
        ("etcd://root:secret@a/m", "the URL of the store holds a user name: use etcds:// with cert= and key= instead"),
        ("etcd://a/m#x", 'the store "etcd://a/m#x" has a "#" in it'),
        ("etcd://a/m//n", 'the prefix "/m//n" of the store may only have'),
        ("etcd://a/m%20n", 'the prefix "/m%20n" of the store may only have'),
        ("etcd://a/" + "m" * 300, "and 200 characters"),
        ("etcd://a/m?ttl=1", 'the option ttl of the store must be 2 to 60 seconds, not "1"'),
        ("etcd://a/m?ttl=x", 'the option ttl of the store must be 2 to 60 seconds, not "x"'),
        ("etcd://a/m?tll=5", 'has an unknown option "tll": there are ca, cert, key and ttl'),
        ("etcd://a/m?ttl", 'must have name=value after the "?"'),
        ("etcd://a/m?ttl=", 'has nothing after "ttl="'),
        ("etcd://a/m?ttl=5&ttl=6", 'has the option "ttl" twice'),
        ("etcd://a/m?ca=/x", "has certificates but no TLS: write etcds://"),
        ("etcds://a/m?cert=/x", "needs cert= and key= together"),
    ],
)
def test_bad(text, said):
    with pytest.raises(BadStoreUrl) as caught:
        parse_url(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
