"""
What ``./lab`` is made of: a farm of real systemd hosts on one machine.

``cli`` reads the command line, ``farm`` is a lab as a whole, ``host`` one of its hosts,
``network``, ``cgroups`` and ``image`` what hosts stand on, ``machine`` the machine below them,
``salt`` what runs on the master, ``testing`` the tests. Standard library only.
"""
